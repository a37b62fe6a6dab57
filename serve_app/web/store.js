/** All videos that this tab knows, newest first. Each is a signal of its own: progress of one redraws one card. */
import { batch, signal } from './ui.js';

/** @typedef {import('./types.js').Video} Video */

export const FINAL = new Set(['completed', 'failed', 'cancelled']);

/** @type {Map<string, {video: any, asOf: number}>} */
const known = new Map();
const deleted = new Set();
let time = 0;

/** Ids in the order of the gallery. */
export const order = signal(/** @type {string[]} */ ([]));
/** Grows whenever a video comes, goes, or ends: what depends on the whole set reads it. */
export const changes = signal(0);

/** A point in this tab's time, taken before a request: what was learnt later is newer than the answer. */
export function now() {
  return ++time;
}

/** @param {string} id @returns {Video|undefined} follows the video in a component or an effect */
export function video(id) {
  const entry = known.get(id);
  // Whether one that is not known has come meanwhile.
  if (!entry) changes.value;
  return entry?.video.value;
}

/** @param {string} id @returns {Video|undefined} */
export function peek(id) {
  return known.get(id)?.video.peek();
}

/** @returns {Video[]} those that are waiting or being made, oldest first */
export function live() {
  changes.value;
  return order
    .peek()
    .map(peek)
    .filter((v) => v && !FINAL.has(v.state))
    .reverse();
}

/**
 * Learn a video as it was at `asOf`; what is known to be newer stays.
 * @param {Video} video @param {number} [asOf] @param {boolean} [listed] whether the gallery shows it
 */
export function put(video, asOf = now(), listed = true) {
  if (deleted.has(video.id)) return;
  const entry = known.get(video.id);
  if (!entry) {
    known.set(video.id, { video: signal(video), asOf });
    changes.value++;
  } else if (entry.asOf <= asOf) update(entry, video, asOf);
  if (listed && !order.peek().includes(video.id)) insert(video.id);
}

/** @param {string} id @param {Partial<Video>} changed of a video that is known */
export function patch(id, changed) {
  const entry = known.get(id);
  if (entry) update(entry, { ...entry.video.peek(), ...changed }, now());
}

function update(entry, video, asOf) {
  const before = entry.video.peek();
  entry.asOf = asOf;
  batch(() => {
    entry.video.value = { ...video, note: video.note ?? before.note };
    if (before.state !== video.state) changes.value++;
  });
}

/** Ids begin with the time of their making, so their order is that of the videos. */
function insert(id) {
  batch(() => {
    order.value = [...order.peek(), id].sort((a, b) => (a < b ? 1 : -1));
    changes.value++;
  });
}

/** @param {string} id deleted for good: no late answer brings it back */
export function remove(id) {
  deleted.add(id);
  drop([id]);
}

/** @param {string[]} ids */
function drop(ids) {
  if (!ids.length) return;
  for (const id of ids) known.delete(id);
  batch(() => {
    order.value = order.peek().filter((id) => known.has(id));
    changes.value++;
  });
}

/**
 * Learn a page of the listing: its videos, and by their absence those that are gone.
 * @param {import('./types.js').VideoPage} page
 * @param {string|null} after the page's cursor, null for the first
 * @param {number} asOf
 */
export function putPage(page, after, asOf) {
  const there = new Set(page.data.map((v) => v.id));
  const newest = after === null ? Infinity : (peek(after)?.created_at ?? 0);
  const oldest = page.has_more ? page.data.at(-1).created_at : -Infinity;
  // Times are whole seconds: of those made in the same second as an end of the page, nothing is known.
  const within = ({ created_at }) => created_at < newest && created_at > oldest;
  batch(() => {
    for (const one of page.data) put(one, asOf);
    drop(order.peek().filter((id) => !there.has(id) && known.get(id).asOf < asOf && within(peek(id))));
  });
}

/** Forget everything, as when another key is used. */
export function clear() {
  known.clear();
  deleted.clear();
  batch(() => {
    order.value = [];
    changes.value++;
  });
}
