/** How far a video is: a bar, the step, and when it will be done. */
import { clock } from '../clock.js';
import { html } from '../ui.js';
import { attemptText, forecast, stateText } from '../wording.js';

/** @param {{video: import('../types.js').Video}} props */
export function Progress({ video }) {
  const text = [stateText(video), forecast(video, clock.value)].filter(Boolean).join(' · ');
  const style = { transform: `scaleX(${video.progress / 100})` };
  return html`<div class="progress">
    <div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"
      aria-valuenow=${video.progress} aria-valuetext=${text}>
      <div class="done" style=${style} />
    </div>
    <p class="progress-text">${text}</p>
    ${attemptText(video) && html`<p class="quiet small">${attemptText(video)}</p>`}
  </div>`;
}
