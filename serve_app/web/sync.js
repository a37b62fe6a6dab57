/** Keeps this tab like the server: what is served, how it is, and the list of videos, also those of other tabs. */
import { key } from './access.js';
import { json } from './api.js';
import { refreshHealth } from './health.js';
import { hasLiveUnfollowed } from './live.js';
import { refreshPreviews, tidyPreviews } from './previews.js';
import { keepAsking, refreshNow } from './rounds.js';
import { FINAL, clear, live, now, order, peek, putPage, remove } from './store.js';
import { computed, effect, signal } from './ui.js';

const PAGE = 24;
const LONGEST_PAGE = 100;
const LIVE_MS = 1500;
const QUIET_MS = 5000;
const HEALTH_MS = 15_000;

export const model = signal(/** @type {import('./types.js').Model|null} */ (null));
export const examples = signal(/** @type {{note: string, prompts: string[]}|null} */ (null));
/** The first page of the list is here. */
export const listed = signal(false);
export const hasMore = signal(false);
export const ready = computed(() => model.value !== null && listed.value);

const otherTabs = new BroadcastChannel('mochi-serve');
/** Videos were being made in the round before. */
let madeThen = false;
let deep = 0;

/** Tell the page's other tabs that something was made, ended or deleted here. */
export function tellOtherTabs() {
  otherTabs.postMessage('changed');
}

/** Runs for as long as the page is open. */
export async function keepInSync() {
  otherTabs.addEventListener('message', refreshNow);
  startAgainWithEachKey();
  await keepAsking(refresh);
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
async function refresh() {
  if (!model.peek()) await loadModel();
  await refreshFirstPage();
  await refreshOlderLive();
  await Promise.all([refreshPreviews(), refreshHealth(healthPause())]);
  tidyPreviews();
  return hasLiveUnfollowed() ? LIVE_MS : QUIET_MS;
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

/** At once when the last one has ended: until then the header says how many are in work. */
function healthPause() {
  const made = live().length > 0;
  const ms = made ? QUIET_MS : madeThen ? 0 : HEALTH_MS;
  madeThen = made;
  return ms;
}
