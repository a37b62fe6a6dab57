/** Line icons of 20 x 20. They say nothing to a screen reader: the text beside them, or the button's label, does. */
import { html } from '../ui.js';

const PATHS = {
  download: 'M10 3v9m0 0 3.5-3.5M10 12 6.5 8.5M4 16h12',
  enhance: 'M10 3.5 11.6 8.4 16.5 10l-4.9 1.6L10 16.5l-1.6-4.9L3.5 10l4.9-1.6zM16 3v3m1.5-1.5h-3',
  remix: 'M12.5 4.5l3 3L7.5 15.5l-4 1 1-4zM11 6l3 3',
  remove: 'M4 6h12M8 6V4h4v2m-6.5 0 .7 10h7.6l.7-10M8.5 9v4.5m3-4.5v4.5',
  cancel: 'M5.5 5.5l9 9m0-9l-9 9',
  link: 'M8.5 11.5a3 3 0 0 0 4.2 0l2.4-2.4a3 3 0 0 0-4.2-4.2l-1 1M11.5 8.5a3 3 0 0 0-4.2 0l-2.4 2.4a3 3 0 0 0 4.2 4.2l1-1',
  again: 'M15.5 7.5A6 6 0 1 0 16 11m0-7.5v4h-4',
  settings: 'M4 6h7m4 0h1M4 14h1m4 0h7M13 4.2v3.6M7 12.2v3.6',
  play: 'M7 4.5v11l8.5-5.5z',
  sun: 'M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7zM10 2v1.5m0 13V18m8-8h-1.5m-13 0H2m13.7-5.7-1.1 1.1M5.4 14.6l-1.1 1.1m11.4 0-1.1-1.1M5.4 5.4 4.3 4.3',
  moon: 'M16 11.8A6.5 6.5 0 0 1 8.2 4a6.5 6.5 0 1 0 7.8 7.8z',
  key: 'M12.5 3.5a4 4 0 1 1-3.6 5.7L3.5 14.6v2h2.5v-2h2v-2h1.5l.5-.5M13 7h.01',
  warning: 'M10 3.5 17.5 16.5h-15zM10 8.5v3.5m0 2.2v.1',
};

/** @param {{name: keyof typeof PATHS}} props */
export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 20 20" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

/** The mark: a soft cake with a play sign cut out. */
export function Mark() {
  return html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
    <path
      fill-rule="evenodd"
      d="M16 5c7.5 0 13 5.2 13 12.2C29 24 24 27 16 27S3 24 3 17.2C3 10.2 8.5 5 16 5zm-3.3 7.6v8.3c0 .8.9 1.3 1.6.9l6.6-4.1c.7-.4.7-1.4 0-1.8l-6.6-4.1c-.7-.5-1.6 0-1.6.8z"
    />
  </svg>`;
}
