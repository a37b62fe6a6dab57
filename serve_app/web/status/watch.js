/** Keeps the page of the operators like the server: what waits and runs, the list of videos, the way of the open one. */
import { key } from '../access.js';
import { ApiError, answer, json, serverNow, videoPath } from '../api.js';
import { refreshHealth } from '../health.js';
import { open } from '../route.js';
import { keepAsking, refreshNow } from '../rounds.js';
import { FINAL } from '../store.js';
import { batch, effect, signal, untracked } from '../ui.js';
import { problemOf } from '../wording.js';
import { pauseAfter } from './figures.js';

const HEALTH_MS = 5000;
export const FEW = 20;
export const MOST = 100;

/** The last answer of GET /v1/status, and when it came by the server's clock, in milliseconds. */
export const report = signal(/** @type {import('../types.js').Report|null} */ (null));
export const answeredAt = signal(0);

/** Which videos are listed; status and tenant: '' for all. */
export const filter = signal({ status: '', tenant: '', limit: FEW });
/** The page of the list, and the filter that it is of. */
export const listing = signal(/** @type {{page: import('../types.js').VideoPage, wanted: any}|null} */ (null));

/** The video that is open, and its moves; null until they are here. */
export const opened = signal(/** @type {{video: any, moves: import('./timeline.js').Move[]}|null} */ (null));
/** Why the open video cannot be shown. */
export const openProblem = signal(/** @type {import('../types.js').Problem|null} */ (null));

/** Runs for as long as the page is open. */
export async function watch() {
  startAgainWith(
    () => key.value,
    () => {
      report.value = listing.value = null;
      forgetOpened();
    },
  );
  startAgainWith(() => open.value, forgetOpened);
  startAgainWith(
    () => filter.value,
    () => {},
  );
  await keepAsking(refresh);
}

/** @param {() => unknown} chosen read in an effect @param {() => void} forget what is no longer so */
function startAgainWith(chosen, forget) {
  let before = untracked(chosen);
  effect(() => {
    const now = chosen();
    if (now === before) return;
    before = now;
    batch(() => untracked(forget));
    refreshNow();
  });
}

function forgetOpened() {
  opened.value = openProblem.value = null;
}

async function refresh() {
  const before = performance.now();
  const asked = key.peek();
  const [status, listed, ofOpened] = await Promise.all([
    answer('v1/status', { cache: 'no-store' }),
    refreshListing(asked),
    refreshOpened(),
    refreshHealth(HEALTH_MS),
  ]);
  // A late answer to an older key shows what is not this one's.
  if (asked === key.peek()) {
    batch(() => {
      report.value = status.body;
      answeredAt.value = serverNow();
    });
  }
  const limit = Number(status.headers.get('x-ratelimit-limit-requests'));
  const requests = 1 + listed + ofOpened;
  return pauseAfter({ tookMs: performance.now() - before, requests, perMinute: limit || null });
}

/** @param {string} asked the key in use @returns {Promise<number>} how many requests it took, as the next */
async function refreshListing(asked) {
  const wanted = filter.peek();
  const query = new URLSearchParams({ limit: String(wanted.limit) });
  if (wanted.status) query.set('status', wanted.status);
  if (wanted.tenant) query.set('tenant', wanted.tenant);
  // What waits longest stands first; of all others the newest.
  if (wanted.status === 'queued') query.set('order', 'asc');
  const page = await json(`v1/videos?${query}`, { cache: 'no-store' });
  if (wanted === filter.peek() && asked === key.peek()) listing.value = { page, wanted };
  return 1;
}

async function refreshOpened() {
  const id = open.peek();
  if (!id || (opened.peek() && FINAL.has(opened.peek().video.state))) return 0;
  try {
    const [video, history] = await Promise.all(
      ['', '/history'].map((rest) => json(videoPath(id, rest), { cache: 'no-store' })),
    );
    if (id === open.peek())
      batch(() => {
        opened.value = { video, moves: history.data };
        openProblem.value = null;
      });
  } catch (error) {
    // That there is no such video says nothing about the server.
    if (!(error instanceof ApiError) || error.away || error.status === 401 || error.status === 429) throw error;
    if (id === open.peek()) openProblem.value = problemOf(error, serverNow());
  }
  return 2;
}
