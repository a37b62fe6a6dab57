/** What GET /v1/status tells, counted and put in the places where it is shown. No I/O. */
import { duration } from '../wording.js';

/**
 * @typedef {import('../types.js').Report} Report
 * @typedef {import('../types.js').RunningJob} RunningJob
 * @typedef {import('../types.js').WorkingReplica} WorkingReplica
 */

/** Those of a video. */
export const STAGES = ['encoding', 'sampling', 'decoding'];
/** That of a file of proteins, on a server that has them. */
export const EMBEDDING = 'embedding';
export const WORKERS = {
  encoding: 'Prompt encoder',
  sampling: 'Sampler',
  decoding: 'Video decoder',
  [EMBEDDING]: 'Protein files',
};

/**
 * What waits for each stage and is worked on there; of proteins only where there is any.
 * @param {Report} report
 * @returns {{stage: string, waiting: number, running: number, oldestAt: number|null}[]} oldestAt: Unix seconds
 */
export function stageFigures({ waiting, running }) {
  const hasProteins = [...waiting, ...running].some(({ stage }) => stage === EMBEDDING);
  return (hasProteins ? [...STAGES, EMBEDDING] : STAGES).map((stage) => {
    const rows = waiting.filter((row) => row.stage === stage);
    return {
      stage,
      waiting: sum(rows.map(({ count }) => count)),
      running: running.filter((job) => job.stage === stage).length,
      oldestAt: oldest(rows),
    };
  });
}

/** When the oldest of them was accepted; null of none. @param {{oldest_at: number}[]} rows */
export function oldest(rows) {
  return rows.length ? Math.min(...rows.map(({ oldest_at }) => oldest_at)) : null;
}

/** @param {number[]} numbers */
export function sum(numbers) {
  return numbers.reduce((total, one) => total + one, 0);
}

/** A name for each row of the queue that stays the same. @param {{stage: string, tier: string, tenant: string}} row */
export function queueKey({ stage, tier, tenant }) {
  return `${stage} ${tier} ${tenant}`;
}

/**
 * The replicas by stage and name, each with what it works on. Jobs at a replica that announces itself no more have a
 * place of their own, as do those that are on their way to one.
 * @param {Report} report
 * @returns {{key: string, stage: string, replica: WorkingReplica|null, name: string|null, jobs: RunningJob[],
 *   others: number}[]} others: jobs of other tenants, of which nothing else is told
 */
export function places({ replicas, running }) {
  const known = new Set(replicas.map(({ replica }) => replica));
  const there = replicas.map((replica) => {
    const jobs = running.filter((job) => job.replica === replica.replica);
    const others = Math.max(0, replica.busy - jobs.length);
    return { key: replica.replica, stage: replica.stage, replica, name: replica.replica, jobs, others };
  });
  const elsewhere = new Map();
  for (const job of running.filter((one) => !known.has(one.replica))) {
    const key = `${job.stage} ${job.replica ?? ''}`;
    const place = elsewhere.get(key) ?? {
      ...{ key, stage: job.stage, replica: null, name: job.replica, jobs: [], others: 0 },
    };
    place.jobs.push(job);
    elsewhere.set(key, place);
  }
  const order = ({ stage, replica, key }) => `${[...STAGES, EMBEDDING].indexOf(stage)} ${replica ? 0 : 1} ${key}`;
  return [...there, ...elsewhere.values()].sort((a, b) => (order(a) < order(b) ? -1 : 1));
}

/**
 * How a replica is.
 * @param {WorkingReplica} replica
 * @returns {'working'|'idle'|'leaving'|'sick'}
 */
export function conditionOf({ slots, busy, problem }) {
  if (problem) return 'sick';
  if (!slots) return 'leaving';
  return busy ? 'working' : 'idle';
}

/**
 * What is to be said of stages that have no replica that takes jobs, or wait for further ones.
 * @param {Report} report @param {number} now Unix seconds
 * @returns {{stage: string, missing: boolean, text: string, readyAt: number|null}[]} readyAt: Unix seconds
 */
export function absences({ replicas, starting }, now) {
  return STAGES.flatMap((stage) => {
    const there = replicas.filter((one) => one.stage === stage);
    const missing = !there.some(({ slots }) => slots);
    const coming = starting[stage];
    if (!missing && !coming) return [];
    const text = coming ? comingText(coming, now, missing) : NONE_COMES;
    return {
      stage,
      missing,
      text: there.length && missing ? `Those there take no jobs. ${text}` : text,
      readyAt: coming?.ready_at ?? null,
    };
  });
}

const NONE_COMES = 'None is being started. One comes with the next job, if the stage may scale to none.';

function comingText({ count, ready_at: readyAt }, now, missing) {
  const left = readyAt - now;
  const when = left > 0 ? `likely in ${duration(left)}` : `it was expected ${duration(-left)} ago`;
  const more = missing ? '' : ' more';
  return count === 1 ? `1${more} is starting: ${when}.` : `${count}${more} are starting: the first ${when}.`;
}

/**
 * Whether videos are accepted and made.
 * @param {any} health of GET /health; null: nothing is known
 * @returns {{look: 'good'|'starting'|'bad', text: string, why: string}}
 */
export function stateOf(health) {
  if (!health?.queue)
    return { look: 'bad', text: 'How the server is, is not known', why: health?.error?.message ?? '' };
  if (health.status === 'ok') return { look: 'good', text: 'Videos are accepted and made', why: '' };
  if (health.status === 'starting')
    return { look: 'starting', text: 'Videos are accepted, and none can be made yet', why: health.waiting_for ?? '' };
  return { look: 'bad', text: 'No videos are accepted', why: health.error?.message ?? '' };
}

const ROUND_MS = 2000;
const LONGEST_ROUND_MS = 15_000;
const PATIENCE = 3;
const SHARE_OF_LIMIT = 0.5;

/**
 * Milliseconds until the next round: a server that is slow to answer is asked less often, and of a tenant's limit of
 * requests a minute half is left to its own work.
 * @param {{tookMs: number, requests: number, perMinute: number|null}} round requests: how many it sent with the key
 */
export function pauseAfter({ tookMs, requests, perMinute }) {
  const slow = Math.min(LONGEST_ROUND_MS, Math.max(ROUND_MS, PATIENCE * tookMs));
  return perMinute ? Math.max(slow, (60_000 * requests) / (perMinute * SHARE_OF_LIMIT)) : slow;
}

const GB = 1e9;

/**
 * What the driver tells of a GPU, in words; what it does not tell is left out.
 * @param {{memory_total: number|null, memory_used: number|null, utilization: number|null, power_w: number|null,
 *   temperature_c: number|null}} gpu
 * @returns {{memory: string, filled: number|null, others: string}} filled: part of its memory that is in use
 */
export function gpuFigures(gpu) {
  const known = gpu.memory_total !== null && gpu.memory_used !== null;
  const memory = known && `${(gpu.memory_used / GB).toFixed(1)} of ${(gpu.memory_total / GB).toFixed(1)} GB in use`;
  const others = [
    gpu.utilization !== null && `${Math.round(gpu.utilization * 100)} % busy`,
    gpu.power_w !== null && `${Math.round(gpu.power_w)} W`,
    gpu.temperature_c !== null && `${Math.round(gpu.temperature_c)} °C`,
  ];
  return {
    memory: memory || '',
    filled: known ? gpu.memory_used / gpu.memory_total : null,
    others: others.filter(Boolean).join(' · '),
  };
}
