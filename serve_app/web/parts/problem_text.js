/** Why something did not work, where it did not work, with the time to wait if there is one. */
import { clock } from '../clock.js';
import { html } from '../ui.js';
import { waitText } from '../wording.js';

/** @param {{problem: import('../types.js').Problem|null|undefined, id?: string}} props */
export function ProblemText({ problem, id }) {
  if (!problem) return null;
  const wait = problem.retryAt === null ? '' : waitText(problem.retryAt, clock.value);
  return html`<p class="error" id=${id} role="alert">${problem.text}${wait && html` <span
    aria-live="off">${wait}</span>`}</p>`;
}
