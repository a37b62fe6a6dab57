/** A video in the gallery. */
import { cancel } from '../actions.js';
import { serverNow } from '../api.js';
import { download } from '../media.js';
import { show } from '../route.js';
import { FINAL, video as videoOf } from '../store.js';
import { html, useState } from '../ui.js';
import { length, problemOf, sizeText, stateText } from '../wording.js';
import { askToDelete } from './delete_dialog.js';
import { Icon } from './icons.js';
import { ProblemText } from './problem_text.js';
import { Progress } from './progress.js';
import { Stage, calm } from './stage.js';

/** @param {{id: string}} props */
export function Card({ id }) {
  const video = videoOf(id);
  const [looking, setLooking] = useState(false);
  if (!video) return null;
  const look = () => setLooking(!calm.matches);
  const leave = () => setLooking(false);
  return html`<li class="card ${video.state}">
    <a class="open" href="#${id}" onMouseEnter=${look} onMouseLeave=${leave} onFocus=${look} onBlur=${leave}>
      <${Stage} video=${video} playing=${looking} />
      <span class="prompt">${video.prompt}</span>
    </a>
    ${FINAL.has(video.state) ? html`<${Facts} video=${video} />` : html`<${Progress} video=${video} />`}
    <${Actions} video=${video} />
  </li>`;
}

function Facts({ video }) {
  if (video.state !== 'completed') return html`<p class="facts error">${stateText(video)}${why(video)}</p>`;
  const facts = [sizeText(video.size), length(video.num_frames, video.fps), `${video.num_inference_steps} steps`];
  return html`<p class="facts">${facts.join(' · ')}</p>`;
}

function why(video) {
  return video.state === 'failed' && video.error ? `: ${video.error.message}` : '';
}

function Actions({ video }) {
  const [problem, setProblem] = useState(null);
  const attempt = (action) => action.catch((error) => setProblem(problemOf(error, serverNow())));
  return html`<div class="actions">${buttons(video, attempt)}</div>
    <${ProblemText} problem=${problem} />`;
}

function buttons(video, attempt) {
  const id = video.id;
  const button = (
    icon,
    label,
    action,
  ) => html`<button type="button" class="round" aria-label="${label}: ${video.prompt}" title=${label} onClick=${action}>
    <${Icon} name=${icon} />
  </button>`;
  if (!FINAL.has(video.state)) return button('cancel', 'Cancel', () => attempt(cancel(id)));
  return html`
    ${button('remix', 'Remix', () => show(id, 'remix'))}
    ${video.state === 'completed' && button('enhance', 'Enhance', () => show(id, 'enhance'))}
    ${video.state === 'completed' && button('download', 'Download', () => attempt(download(id)))}
    ${button('remove', 'Delete', () => askToDelete(id))}
  `;
}
