/** Says that there is more than is shown, because rows hold still just now. */
import { html } from '../ui.js';
import { plural } from '../wording.js';

/** @param {{count: number}} props */
export function More({ count }) {
  return (
    count > 0 &&
    html`<p class="more-note small">${plural(count, 'new one comes', 'new ones come')} when the pointer leaves</p>`
  );
}
