/** Keeps this tab like the server: what is served, how it is, and the list of videos, also those of other tabs. */
import { key, keyWanted } from './access.js';
import { ApiError, json, serverNow } from './api.js';
import { hasLiveUnfollowed } from './live.js';
import { refreshPreviews, tidyPreviews } from './previews.js';
import { FINAL, clear, live, now, order, peek, putPage, remove } from './store.js';
import { computed, effect, signal } from './ui.js';

const PAGE = 24;
const LONGEST_PAGE = 100;
const LIVE_MS = 1500;
const QUIET_MS = 5000;
const HEALTH_MS = 15_000;
const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15_000;

export const model = signal(/** @type {import('./types.js').Model|null} */ (null));
export const examples = signal(/** @type {{note: string, prompts: string[]}|null} */ (null));
export const health = signal(/** @type {any} */ (null));
/** The first page of the list is here. */
export const listed = signal(false);
export const hasMore = signal(false);
/** Why the list cannot be read now, and when it is tried again; null while all is well. */
export const away = signal(/** @type {import('./types.js').Problem|null} */ (null));
export const ready = computed(() => model.value !== null && listed.value);

const otherTabs = new BroadcastChannel('mochi-serve');
/** Somebody asked for a round while one was running, or wants the pause to end. */
let asked = false;
let resume = () => {};
let failures = 0;
let healthAsked = -Infinity;
/** Videos were being made when the health was asked for. */
let madeThen = false;
let deep = 0;

/** Tell the page's other tabs that something was made, ended or deleted here. */
export function tellOtherTabs() {
  otherTabs.postMessage('changed');
}

/** Ask the server again at once. */
export function refreshNow() {
  asked = true;
  resume();
}

/** Runs for as long as the page is open. */
export async function keepInSync() {
  for (const happening of ['online', 'focus', 'pageshow']) addEventListener(happening, refreshNow);
  document.addEventListener('visibilitychange', refreshNow);
  otherTabs.addEventListener('message', refreshNow);
  startAgainWithEachKey();
  for (;;) await pause(await round());
}

function startAgainWithEachKey() {
  let before = key.peek();
  effect(() => {
    if (key.value === before) return;
    before = key.value;
    clear();
    listed.value = false;
    refreshNow();
  });
}

/** @returns {Promise<number>} milliseconds until the next */
async function round() {
  asked = false;
  if (keyWanted.peek() !== null || document.hidden) return Infinity;
  try {
    await refresh();
    failures = 0;
    away.value = null;
    return hasLiveUnfollowed() ? LIVE_MS : QUIET_MS;
  } catch (error) {
    return afterFailure(error);
  }
}

function afterFailure(error) {
  if (error instanceof ApiError && error.status === 401) return Infinity;
  const growing = Math.min(FIRST_PAUSE_MS * 2 ** failures++, LONGEST_PAUSE_MS);
  const ms = Math.max(growing, 1000 * (error.retryAfterS ?? 0));
  away.value = { text: error.message, param: null, retryAt: serverNow() + ms };
  health.value = null;
  healthAsked = -Infinity;
  return ms;
}

function pause(ms) {
  if (asked) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = ms === Infinity ? undefined : setTimeout(resolve, ms);
    resume = () => (clearTimeout(timer), resolve(undefined));
  });
}

async function refresh() {
  if (!model.peek()) await loadModel();
  await refreshFirstPage();
  await refreshOlderLive();
  await Promise.all([refreshPreviews(), refreshHealth()]);
  tidyPreviews();
}

async function loadModel() {
  const [models, prompts] = await Promise.all([json('v1/models'), json('web/examples.json')]);
  model.value = models.data[0];
  examples.value = prompts;
}

async function refreshFirstPage() {
  const limit = Math.min(LONGEST_PAGE, Math.max(PAGE, order.peek().length));
  const page = await readPage(null, limit);
  if ((order.peek().at(-1) ?? null) === page.last_id) hasMore.value = page.has_more;
  listed.value = true;
}

/** Videos beyond the first page that are not done yet: one further page in each round, in turn. */
async function refreshOlderLive() {
  const ids = order.peek();
  const beyond = Math.ceil(ids.length / LONGEST_PAGE) - 1;
  if (beyond < 1 || !ids.slice(LONGEST_PAGE).some((id) => !FINAL.has(peek(id).state))) return;
  deep = (deep % beyond) + 1;
  await readPageAfter(ids[deep * LONGEST_PAGE - 1], LONGEST_PAGE);
}

async function readPage(after, limit) {
  const asOf = now();
  const page = await json(`v1/videos?limit=${limit}${after ? `&after=${after}` : ''}`, { cache: 'no-store' });
  putPage(page, after, asOf);
  return page;
}

/** The video that the last page ended with may be gone by now; then the one before it is the end. */
async function readPageAfter(after, limit) {
  try {
    return await readPage(after, limit);
  } catch (error) {
    if (error.param !== 'after') throw error;
    remove(after);
    return null;
  }
}

/** Add the next page of older videos to the gallery. @throws {Error} as `json` */
export async function loadMore() {
  const last = order.peek().at(-1);
  if (!last) return;
  const page = await readPageAfter(last, PAGE);
  if (page) hasMore.value = page.has_more;
}

async function refreshHealth() {
  const made = live().length > 0;
  // At once when the last one has ended: until then the header says how many are in work.
  const pauseMs = made ? QUIET_MS : madeThen ? 0 : HEALTH_MS;
  if (performance.now() - healthAsked < pauseMs) return;
  healthAsked = performance.now();
  madeThen = made;
  const answer = await fetch(new URL('health', document.baseURI)).catch(() => null);
  health.value = (await answer?.json().catch(() => null)) ?? null;
}
