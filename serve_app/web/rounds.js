/** Asks the server in rounds for as long as the page is open, and says when it is away. */
import { keyWanted } from './access.js';
import { ApiError, serverNow } from './api.js';
import { forgetHealth } from './health.js';
import { signal } from './ui.js';

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15_000;

/**
 * Why the last round failed, since when none succeeded, and when the next is tried; null while all is well.
 * @type {{value: (import('./types.js').Problem & {since: number})|null, peek: Function}}
 */
export const away = signal(null);

/** Somebody asked for a round while one was running, or wants the pause to end. */
let asked = false;
let resume = () => {};
let failures = 0;

/** Ask the server again at once. */
export function refreshNow() {
  asked = true;
  resume();
}

/**
 * Never ends. There is no round while a key is asked for, or nobody looks.
 * @param {() => Promise<number>} refresh resolves to the milliseconds until the next round
 */
export async function keepAsking(refresh) {
  for (const happening of ['online', 'focus', 'pageshow']) addEventListener(happening, refreshNow);
  document.addEventListener('visibilitychange', refreshNow);
  for (;;) await pause(await round(refresh));
}

async function round(refresh) {
  asked = false;
  if (keyWanted.peek() !== null || document.hidden) return Infinity;
  try {
    const ms = await refresh();
    failures = 0;
    away.value = null;
    return ms;
  } catch (error) {
    return afterFailure(error);
  }
}

function afterFailure(error) {
  if (error instanceof ApiError && error.status === 401) return Infinity;
  const growing = Math.min(FIRST_PAUSE_MS * 2 ** failures++, LONGEST_PAUSE_MS);
  const ms = Math.max(growing, 1000 * (error.retryAfterS ?? 0));
  const since = away.peek()?.since ?? serverNow();
  away.value = { text: error.message, param: null, retryAt: serverNow() + ms, since };
  forgetHealth();
  return ms;
}

function pause(ms) {
  if (asked) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = ms === Infinity ? undefined : setTimeout(resolve, ms);
    resume = () => (clearTimeout(timer), resolve(undefined));
  });
}
