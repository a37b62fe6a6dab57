/** A video's way drawn to scale, and the same numbers as a table. */
import { html, useState } from '../ui.js';
import { timeOfDay } from '../wording.js';
import { KIND_NAMES, exactly, inWords, sums, ticks } from './timeline.js';

const ENDS = { completed: 'Completed', failed: 'Failed', cancelled: 'Cancelled' };
const wide = matchMedia('(min-width: 52rem)');

/** @param {{way: import('./timeline.js').Way}} props */
export function WayChart({ way }) {
  const [marked, mark] = useState(-1);
  return html`<${Lanes} way=${way} marked=${marked} mark=${mark} /><${Table}
      way=${way}
      marked=${marked}
      mark=${mark}
    />`;
}

function Lanes({ way, marked, mark }) {
  const whole = way.to - way.from;
  const percent = (seconds) => `${whole ? (100 * seconds) / whole : 0}%`;
  const marks = ticks(whole, wide.matches ? 6 : 4);
  const bar = (one, n) =>
    html`<i
      key=${n}
      class="stretch ${one.kind} ${one.open ? 'open' : ''} ${n === marked ? 'marked' : ''}"
      style=${{ left: percent(one.from - way.from), width: percent(one.to - one.from) }}
      title=${titleOf(one)}
      onMouseEnter=${() => mark(n)}
      onMouseLeave=${() => mark(-1)}
    />`;
  return html`<div class="lanes" role="img" aria-label=${inWords(way)}>
    ${sums(way.stretches).map(
      ({ kind, seconds }) =>
        html`<div key=${kind} class="lane">
          <span class="lane-name small">${KIND_NAMES[kind]} <b>${exactly(seconds)}</b></span>
          <div class="track">
            ${marks.map((at) => html`<i key=${`tick ${at}`} class="tick" style=${{ left: percent(at) }} />`)}
            ${way.stretches.map((one, n) => one.kind === kind && bar(one, n))}
          </div>
        </div>`,
    )}
    <div class="lane axis">
      <span class="lane-name" />
      <div class="track">
        ${marks.map(
          (at) =>
            html`<span key=${at} class="small ${sideOf(at / whole)}" style=${{ left: percent(at) }}
              >${at ? exactly(at) : '0'}</span
            >`,
        )}
      </div>
    </div>
  </div>`;
}

function sideOf(share) {
  return share > 0.9 ? 'at-end' : share ? '' : 'at-start';
}

function titleOf(one) {
  return `${nameOf(one)}, ${exactly(one.to - one.from)}${one.note ? `: ${one.note}` : ''}`;
}

function nameOf({ kind, stage }) {
  return kind === 'waiting' ? `Waiting for ${stage}` : KIND_NAMES[kind];
}

function Table({ way, marked, mark }) {
  const { stretches, from, end } = way;
  return html`<table class="rows moves" role="table" aria-label="The same in numbers">
    <thead role="rowgroup">
      <tr role="row">
        ${['What', 'From', 'For', 'Attempt', 'Why'].map(
          (name) => html`<th key=${name} role="columnheader" scope="col">${name}</th>`,
        )}
      </tr>
    </thead>
    <tbody role="rowgroup">
      ${stretches.map(
        (one, n) =>
          html`<tr
            key=${n}
            role="row"
            class=${n === marked ? 'marked' : ''}
            onMouseEnter=${() => mark(n)}
            onMouseLeave=${() => mark(-1)}
          >
            <th role="rowheader" scope="row">${nameOf(one)}</th>
            <${Since} at=${one.from} from=${from} />
            <td role="cell" class="number">${exactly(one.to - one.from)}${one.open ? ' so far' : ''}</td>
            <td role="cell" class="number" data-before="attempt">${one.attempt}</td>
            <td role="cell" class="note">${one.note}</td>
          </tr>`,
      )}
      ${
        end &&
        html`<tr key="end" role="row">
          <th role="rowheader" scope="row">${ENDS[end.state]}</th>
          <${Since} at=${end.at} from=${from} />
          <td role="cell" class="number" />
          <td role="cell" class="number" data-before="attempt">${end.attempt}</td>
          <td role="cell" class="note">${end.note}</td>
        </tr>`
      }
    </tbody>
  </table>`;
}

function Since({ at, from }) {
  return html`<td role="cell" class="number" data-before="at">
    <time title=${timeOfDay(at)}>${at > from ? exactly(at - from) : '0'}</time>
  </td>`;
}
