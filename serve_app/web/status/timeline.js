/** From the moves of a video to its way: stretches of time, their sums, and an axis for them. No I/O. */
import { FINAL } from '../store.js';
import { plural } from '../wording.js';

/**
 * @typedef {{at: number, state: import('../types.js').State, stage: string, attempt: number, note: string}} Move
 *   at: Unix seconds
 * @typedef {'waiting'|'encoding'|'sampling'|'parked'|'decoding'} Kind
 * @typedef {object} Stretch
 * @property {Kind} kind
 * @property {string} stage that it ran, or waited for
 * @property {number} from Unix seconds
 * @property {number} to Unix seconds; of the last one of a video that is not final: now
 * @property {boolean} open whether it still lasts
 * @property {number} attempt
 * @property {string} note why it began
 * @typedef {{stretches: Stretch[], from: number, to: number, end: Move|null}} Way end: null while it is not final
 */

/** @type {Kind[]} in the order of their lanes */
export const KINDS = ['waiting', 'encoding', 'sampling', 'parked', 'decoding'];
export const KIND_NAMES = {
  waiting: 'Waiting',
  encoding: 'Encoding',
  sampling: 'Sampling',
  parked: 'Parked',
  decoding: 'Decoding',
};

const PARKED = /^parked at step /;
const MINUTE_S = 60;
const HOUR_S = 3600;
const DAY_S = 86_400;
// Of which an axis has one, in seconds; above the last, whole days.
const STEPS = [
  ...[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30],
  ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE_S),
  ...[1, 2, 4, 6, 12].map((n) => n * HOUR_S),
];

/**
 * @param {Move[]} moves oldest first, at least one
 * @param {number} now Unix seconds
 * @returns {Way}
 */
export function wayOf(moves, now) {
  const last = moves[moves.length - 1];
  const end = FINAL.has(last.state) ? last : null;
  // A clock that went back draws nothing backwards.
  const until = Math.max(now, last.at);
  const begun = end ? moves.slice(0, -1) : moves;
  const stretches = begun.map((move, n) => ({
    kind: kindOf(move),
    stage: move.stage,
    from: move.at,
    to: Math.max(move.at, moves[n + 1]?.at ?? until),
    open: n === moves.length - 1,
    attempt: move.attempt,
    note: move.note,
  }));
  return { stretches, from: moves[0].at, to: stretches.at(-1)?.to ?? last.at, end };
}

function kindOf({ state, note }) {
  if (state !== 'queued') return state;
  return PARKED.test(note) ? 'parked' : 'waiting';
}

/**
 * Seconds of each kind that there was, in the order of `KINDS`.
 * @param {Stretch[]} stretches
 * @returns {{kind: Kind, seconds: number, count: number}[]}
 */
export function sums(stretches) {
  return KINDS.map((kind) => {
    const of = stretches.filter((one) => one.kind === kind);
    return { kind, seconds: of.reduce((sum, { from, to }) => sum + to - from, 0), count: of.length };
  }).filter(({ count }) => count);
}

/**
 * Marks of an axis from 0 on, at round distances.
 * @param {number} seconds its length
 * @param {number} most how many distances there may be between them
 * @returns {number[]} seconds
 */
export function ticks(seconds, most) {
  const step = STEPS.find((one) => seconds / one <= most) ?? DAY_S * Math.ceil(seconds / most / DAY_S);
  return Array.from({ length: Math.floor(seconds / step + 1e-9) + 1 }, (_, n) => Number((n * step).toFixed(3)));
}

/** As told to who measures: two units at most. @param {number} seconds */
export function exactly(seconds) {
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 9.95) return `${Number(seconds.toFixed(1))} s`;
  const whole = Math.round(seconds);
  if (whole < MINUTE_S) return `${whole} s`;
  if (whole < HOUR_S) return pair(whole, MINUTE_S, 'min', 1, 's');
  if (whole < DAY_S) return pair(whole, HOUR_S, 'h', MINUTE_S, 'min');
  return pair(whole, DAY_S, 'd', HOUR_S, 'h');
}

function pair(seconds, large, largeName, small, smallName) {
  const rest = Math.floor((seconds % large) / small);
  return `${Math.floor(seconds / large)} ${largeName}${rest ? ` ${rest} ${smallName}` : ''}`;
}

/** The way in a sentence, for those who do not see it drawn. @param {Way} way */
export function inWords({ stretches, from, to, end }) {
  const parts = sums(stretches).map(
    ({ kind, seconds, count }) =>
      `${kind} ${exactly(seconds)}${count > 1 ? ` in ${plural(count, 'stretch', 'stretches')}` : ''}`,
  );
  const last = end ? `It ${ENDS[end.state]} after ${exactly(end.at - from)}` : `${exactly(to - from)} so far`;
  return `${last}: ${parts.join(', ')}.`;
}

const ENDS = { completed: 'was completed', failed: 'failed', cancelled: 'was cancelled' };
