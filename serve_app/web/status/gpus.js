/** The GPUs that replicas work on, as their drivers tell. */
import { html } from '../ui.js';
import { gpuFigures } from './figures.js';
import { STILL, useSteady } from './hold.js';
import { report } from './watch.js';

export function Gpus() {
  const { rows } = useSteady(report.value.gpus, ({ uuid }) => uuid);
  return (
    rows.length > 0 &&
    html`<section class="block" aria-labelledby="gpus-title">
      <div class="head"><h2 id="gpus-title">GPUs</h2></div>
      <ul class="replicas ${STILL}">
        ${rows.map((row) => html`<${Gpu} key=${row.key} ...${row} />`)}
      </ul>
    </section>`
  );
}

function Gpu({ value, gone }) {
  const { memory, filled, others } = gpuFigures(value);
  return html`<li class="replica ${gone ? 'gone' : ''}">
    <h3>${value.uuid.slice(0, 12)}</h3>
    ${memory && html`<p class="small">${memory}</p>`}
    ${
      filled !== null &&
      html`<span class="bar" aria-hidden="true"
        ><span class="done" style=${{ transform: `scaleX(${filled})` }}
      /></span>`
    }
    <p class="quiet small">${gone ? 'No longer told of' : others}</p>
  </li>`;
}
