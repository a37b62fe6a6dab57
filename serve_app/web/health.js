/** How the server is, as /health tells everybody. */
import { urlOf } from './api.js';
import { signal } from './ui.js';

/** The last report; null without one. */
export const health = signal(/** @type {any} */ (null));

let askedAt = -Infinity;

/** Ask, unless it was asked so few milliseconds ago. @param {number} pauseMs */
export async function refreshHealth(pauseMs) {
  if (performance.now() - askedAt < pauseMs) return;
  askedAt = performance.now();
  const answer = await fetch(urlOf('health')).catch(() => null);
  health.value = (await answer?.json().catch(() => null)) ?? null;
}

/** What was told is no longer so: the next time asks at once. */
export function forgetHealth() {
  health.value = null;
  askedAt = -Infinity;
}
