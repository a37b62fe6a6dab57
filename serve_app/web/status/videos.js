/** The videos themselves: each leads to its way through the server. */
import { clock } from '../clock.js';
import { FINAL } from '../store.js';
import { html } from '../ui.js';
import { ago, moment, stateText } from '../wording.js';
import { STILL, useSteady } from './hold.js';
import { More } from './more.js';
import { MOST, filter, listing } from './watch.js';

const CHOICES = { '': 'All', queued: 'Waiting', in_progress: 'In work', completed: 'Completed', failed: 'Failed' };

export function Videos() {
  const told = listing.value;
  return html`<section class="block" aria-labelledby="videos-title">
    <div class="head">
      <h2 id="videos-title" tabindex="-1">Videos</h2>
      <${Choice} />
    </div>
    ${told && html`<${List} key=${JSON.stringify(told.wanted)} page=${told.page} />`}
  </section>`;
}

function Choice() {
  const { status, tenant } = filter.value;
  const choose = (changed) => (filter.value = { ...filter.peek(), ...changed });
  return html`<div class="row choice">
    ${
      tenant &&
      html`<button type="button" class="plain" title="Show all tenants" onClick=${() => choose({ tenant: '' })}>
        Only ${tenant} ✕
      </button>`
    }
    <select
      aria-label="Which videos"
      value=${status}
      onChange=${(event) => choose({ status: event.currentTarget.value })}
    >
      ${Object.entries(CHOICES).map(([value, name]) => html`<option key=${value} value=${value}>${name}</option>`)}
    </select>
  </div>`;
}

function List({ page }) {
  const { rows, more } = useSteady(page.data, ({ id }) => id);
  const { limit } = filter.value;
  if (!rows.length) return html`<p class="nothing-here">There are none.</p>`;
  return html`<ul class="videos ${STILL}">
      ${rows.map((row) => html`<${Video} key=${row.key} ...${row} />`)}
    </ul>
    <div class="row after">
      ${
        page.has_more &&
        limit < MOST &&
        html`<button type="button" class="plain" onClick=${() => (filter.value = { ...filter.peek(), limit: MOST })}>
          Show more
        </button>`
      }
      ${page.has_more && limit >= MOST && html`<p class="quiet small">There are more than ${MOST}.</p>`}
      <${More} count=${more} />
    </div>`;
}

function Video({ value: video, gone }) {
  const doing = gone ? 'No longer in this list' : stateText(video);
  const look = FINAL.has(video.state) ? video.state : video.state === 'queued' ? 'waits' : 'works';
  return html`<li class=${gone ? 'gone' : ''}>
    <a class="row-link" href="#${video.id}">
      <span class="prompt">${video.prompt}</span>
      <span class="line quiet small">
        <span class="pill ${look}">${doing}</span>
        <span>${video.tenant}, ${video.priority}</span>
        <time title=${moment(video.created_at)}>${ago(video.created_at, clock.value)}</time>
      </span>
    </a>
  </li>`;
}
