/** The replicas, and what each works on. */
import { clock } from '../clock.js';
import { html } from '../ui.js';
import { plural, sizeText, timeOfDay } from '../wording.js';
import { WORKERS, absences, conditionOf, places } from './figures.js';
import { STILL, useSteady } from './hold.js';
import { More } from './more.js';
import { report } from './watch.js';

const CONDITIONS = { working: 'At work', idle: 'Free', leaving: 'Leaving', sick: 'Takes no jobs' };

export function Replicas() {
  const told = report.value;
  const here = useSteady(places(told), ({ key }) => key);
  const away = useSteady(absences(told, clock.value / 1000), ({ stage }) => stage);
  return html`<section class="block" aria-labelledby="replicas-title">
    <div class="head">
      <h2 id="replicas-title">Replicas</h2>
      <${More} count=${here.more + away.more} />
    </div>
    <ul class="replicas ${STILL}">
      ${here.rows.map((row) => html`<${Place} key=${row.key} ...${row} />`)}
      ${away.rows.map((row) => html`<${Absence} key=${row.key} ...${row} />`)}
    </ul>
  </section>`;
}

function Place({ value, gone }) {
  const { replica, stage, name, jobs, others } = value;
  const { rows } = useSteady(jobs, ({ id }) => id);
  return html`<li class="replica ${gone ? 'gone' : ''}">
    <div class="head">
      <h3>${replica || name ? WORKERS[stage] : `On the way to a ${WORKERS[stage].toLowerCase()}`}</h3>
      ${replica && !gone && html`<${Condition} replica=${replica} />`}
      ${gone && html`<span class="quiet small">Gone</span>`}
    </div>
    ${name && html`<p class="quiet small">${name}</p>`}
    ${
      replica
        ? html`<${About} replica=${replica} />`
        : name &&
          html`<p class="small error">
            It no longer announces itself: its jobs go to another one when their leases lapse.
          </p>`
    }
    <ul class="work">
      ${rows.map((row) => html`<${Job} key=${row.key} ...${row} gone=${gone || row.gone} />`)}
    </ul>
    ${others > 0 && html`<p class="quiet small">${plural(others, 'job')} of other tenants</p>`}
  </li>`;
}

function Condition({ replica }) {
  const condition = conditionOf(replica);
  return html`<span class="pill ${condition}">${CONDITIONS[condition]}</span>`;
}

function About({ replica }) {
  const { device, slots, busy, problem, revision } = replica;
  const room = slots ? `${busy} of ${plural(slots, 'slot')} busy` : `${plural(busy, 'job')} left, takes no more`;
  return html`<p class="small">${[device, room].join(' · ')}</p>
    ${problem && html`<p class="small error">${problem}</p>`}
    ${!problem && !slots && html`<p class="small quiet">It was told to leave, and hands over what it has.</p>`}
    ${
      slots > 0 &&
      html`<div class="slots" aria-hidden="true">
        ${Array.from({ length: slots }, (_, n) => html`<i key=${n} class=${n < busy ? 'busy' : ''} />`)}
      </div>`
    }
    ${revision && html`<p class="quiet small">Model ${revision}</p>`}`;
}

function Job({ value: job, gone }) {
  const steps = `step ${job.step} of ${job.num_inference_steps}`;
  const pace = job.step_s === null ? '' : `${Number(job.step_s.toPrecision(2))} s a step`;
  const clip = job.size === null ? 'a file of proteins' : `${sizeText(job.size)}, ${job.num_frames} frames`;
  const doing = gone ? 'No longer here' : [job.stage !== 'encoding' && job.stage !== 'decoding' && steps, pace].filter(Boolean).join(', ');
  return html`<li class=${gone ? 'gone' : ''}>
    <a class="row-link" href="#${job.id}">
      <span class="line"><b>…${job.id.slice(-8)}</b><span class="small">${job.tenant}, ${job.tier}</span></span>
      <span
        class="bar"
        role="progressbar"
        aria-label="Progress of …${job.id.slice(-8)}"
        aria-valuemin="0"
        aria-valuemax="100"
        aria-valuenow=${job.progress}
        ><span class="done" style=${{ transform: `scaleX(${job.progress / 100})` }}
      /></span>
      <span class="line quiet small"><span>${doing || `${job.progress} %`}</span><span>${clip}</span></span>
    </a>
  </li>`;
}

function Absence({ value, gone }) {
  const { stage, missing, text, readyAt } = value;
  const title = missing ? `No ${WORKERS[stage].toLowerCase()}` : WORKERS[stage];
  return html`<li class="replica absent ${gone ? 'gone' : ''}">
    <h3>${title}</h3>
    <p class="small">${gone ? 'It is there now.' : text}</p>
    ${readyAt && !gone && html`<p class="quiet small">Expected at ${timeOfDay(readyAt)}</p>`}
  </li>`;
}
