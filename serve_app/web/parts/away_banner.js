/** The server is away; the page goes on by itself as soon as it is back. */
import { clock } from '../clock.js';
import { away, refreshNow } from '../rounds.js';
import { html } from '../ui.js';
import { timeOfDay } from '../wording.js';
import { Icon } from './icons.js';

export function AwayBanner() {
  const problem = away.value;
  if (!problem) return null;
  const left = Math.max(0, Math.ceil((problem.retryAt - clock.value) / 1000));
  return html`<section class="banner" role="alert">
    <${Icon} name="warning" />
    <p>${problem.text} Since ${timeOfDay(problem.since / 1000)}. <span
      aria-hidden="true">${left ? `Trying again in ${left} s.` : 'Trying again.'}</span></p>
    <button type="button" class="plain" onClick=${refreshNow}>Try now</button>
  </section>`;
}
