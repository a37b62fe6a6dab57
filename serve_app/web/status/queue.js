/** What waits, by stage, tier and tenant. */
import { clock } from '../clock.js';
import { html } from '../ui.js';
import { duration } from '../wording.js';
import { queueKey } from './figures.js';
import { STILL, useSteady } from './hold.js';
import { More } from './more.js';
import { FEW, filter, report } from './watch.js';

export function Queue() {
  const { rows, more } = useSteady(report.value.waiting, queueKey);
  return html`<section class="block" aria-labelledby="queue-title">
    <div class="head">
      <h2 id="queue-title">Queue</h2>
      <${More} count=${more} />
    </div>
    ${rows.length ? html`<${Table} rows=${rows} />` : html`<p class="nothing-here">Nothing waits.</p>`}
  </section>`;
}

function Table({ rows }) {
  // The roles are written out because styles take tables apart on a phone, and some browsers then forget them.
  return html`<table class="rows queue ${STILL}" role="table" aria-labelledby="queue-title">
    <thead role="rowgroup">
      <tr role="row">
        ${['Tenant', 'Tier', 'Waits for', 'Jobs', 'Oldest', 'GPU time'].map(
          (name) => html`<th key=${name} role="columnheader" scope="col">${name}</th>`,
        )}
      </tr>
    </thead>
    <tbody role="rowgroup">
      ${rows.map((row) => html`<${Row} key=${row.key} ...${row} />`)}
    </tbody>
  </table>`;
}

function Row({ value, gone }) {
  const { tenant, tier, stage, count, oldest_at: oldestAt, gpu_seconds: gpuSeconds } = value;
  return html`<tr role="row" class=${gone ? 'gone' : ''}>
    <th role="rowheader" scope="row">
      <button type="button" class="link" title="List the waiting videos of ${tenant}" onClick=${() => list(tenant)}>
        ${tenant}
      </button>
    </th>
    <td role="cell">${tier}</td>
    <td role="cell">${stage}</td>
    <td role="cell" class="number" data-unit="waiting">${gone ? 0 : count}</td>
    <td role="cell" class="number" data-before="oldest">${gone ? '–' : duration(clock.value / 1000 - oldestAt)}</td>
    <td role="cell" class="number" data-before="needs">${gone ? '–' : duration(gpuSeconds)}</td>
  </tr>`;
}

function list(tenant) {
  filter.value = { status: 'queued', tenant, limit: FEW };
  const heading = document.getElementById('videos-title');
  heading?.scrollIntoView({ block: 'start' });
  heading?.focus({ preventScroll: true });
}
