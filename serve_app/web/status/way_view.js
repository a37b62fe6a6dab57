/** The way of one video through the server, large. Opened by the address. */
import { clock } from '../clock.js';
import { ProblemText } from '../parts/problem_text.js';
import { Progress } from '../parts/progress.js';
import { Sheet } from '../parts/sheet.js';
import { open } from '../route.js';
import { FINAL } from '../store.js';
import { html } from '../ui.js';
import { length, moment, plural, sizeText, stateText } from '../wording.js';
import { exactly, wayOf } from './timeline.js';
import { WayChart } from './way_chart.js';
import { openProblem, opened } from './watch.js';

export function WayView() {
  if (!open.value) return null;
  const problem = openProblem.value;
  return html`<${Sheet} titleId="way-title" kind="way">
    ${
      opened.value
        ? html`<${Inside} ...${opened.value} />`
        : html`<h2 id="way-title">${problem ? 'There is nothing to see' : 'Loading'}</h2>
            <${ProblemText} problem=${problem} />`
    }
  <//>`;
}

function Inside({ video, moves }) {
  const final = FINAL.has(video.state);
  return html`<div class="viewer-text">
    <h2 id="way-title" class="prompt">${video.prompt}</h2>
    ${final ? html`<${Ended} video=${video} />` : html`<${Progress} video=${video} />`}
    <${WayChart} way=${wayOf(moves, clock.value / 1000)} />
    <dl class="facts-list">
      ${rows(video).map(
        ([name, value]) =>
          html`<div key=${name}>
            <dt>${name}</dt>
            <dd>${value}</dd>
          </div>`,
      )}
    </dl>
    <p><a class="plain" href="./#${video.id}">See the video itself</a></p>
  </div>`;
}

function Ended({ video }) {
  if (video.state !== 'failed') return html`<p class="quiet">${stateText(video)}</p>`;
  return html`<p class="error">It failed: ${video.error?.message}</p>`;
}

function rows(video) {
  return [
    ['Tenant', video.tenant],
    ['Tier', video.priority],
    ['Attempt', video.attempt],
    ['Parked', plural(video.parks, 'time')],
    ['Steps run', `${video.steps_run} for ${video.num_inference_steps}`],
    ['Seconds of devices', exactly(video.gpu_seconds)],
    ['Size', `${sizeText(video.size)}, ${length(video.num_frames, video.fps)}`],
    ['Accepted', moment(video.created_at)],
    video.cancel_at && ['Cancelled if not done by', moment(video.cancel_at)],
    ['Id', video.id],
  ].filter(Boolean);
}
