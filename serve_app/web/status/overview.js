/** How the server is, and how much there is to do. */
import { key } from '../access.js';
import { clock } from '../clock.js';
import { health } from '../health.js';
import { away } from '../rounds.js';
import { html } from '../ui.js';
import { duration, plural, timeOfDay } from '../wording.js';
import { oldest, stageFigures, stateOf, sum } from './figures.js';
import { answeredAt, report } from './watch.js';

const NAMES = { encoding: 'Encoding', sampling: 'Sampling', decoding: 'Decoding', embedding: 'Proteins' };

export function Overview() {
  const told = report.value;
  const stages = stageFigures(told);
  return html`<section class="overview" aria-labelledby="status-title">
    <div class="head">
      <h1 id="status-title" class="status-title">Status</h1>
      <p class="quiet small">mochi-serve ${told.version}, as of ${timeOfDay(answeredAt.value / 1000)}</p>
    </div>
    <${State} />
    <dl class="tiles">
      <div class="tile all">
        <dt>In all</dt>
        <dd><b>${sum(stages.map((one) => one.waiting))}</b> waiting</dd>
        <dd><b>${told.running.length}</b> in work</dd>
        <dd class="quiet small">${oldestText(oldest(told.waiting))}</dd>
      </div>
      ${stages.map((one) => html`<${StageTile} key=${one.stage} ...${one} />`)}
    </dl>
    <${OfOthers} />
  </section>`;
}

function State() {
  const { look, text, why } = away.value
    ? { look: 'bad', text: 'The server is away: what is shown here is old', why: '' }
    : stateOf(health.value);
  return html`<div class="state" role="status">
    <p class="pill ${look}">${text}</p>
    ${why && html`<p class="small">${why}</p>`}
  </div>`;
}

function StageTile({ stage, waiting, running, oldestAt }) {
  return html`<div class="tile">
    <dt>${NAMES[stage]}</dt>
    <dd><b>${waiting}</b> waiting</dd>
    <dd><b>${running}</b> in work</dd>
    <dd class="quiet small">${oldestText(oldestAt)}</dd>
  </div>`;
}

function oldestText(at) {
  return at === null ? 'Nothing waits' : `The oldest came ${duration(clock.value / 1000 - at)} ago`;
}

/** With a key one sees one's own tenant's jobs; of the others, how many there are. */
function OfOthers() {
  const queue = health.value?.queue;
  if (!key.value || !queue) return null;
  const waiting = queue.queued ?? 0;
  const running = sum(Object.values(queue)) - waiting;
  const all = `${plural(waiting, 'job waits', 'jobs wait')} and ${plural(running, 'is', 'are')} in work`;
  return html`<p class="quiet small">These are the jobs of your key’s tenant. Of all tenants together ${all}.</p>`;
}
