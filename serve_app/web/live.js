/** Which videos' events this tab reads. The others that are being made are seen by the list's refreshing. */
import { announceProgress } from './announce.js';
import { follow } from './events.js';
import { keyWanted } from './access.js';
import { putPreview } from './previews.js';
import { open } from './route.js';
import { FINAL, changes, live, patch, peek, put, remove } from './store.js';
import { effect, signal } from './ui.js';

// A browser opens six connections to a host over HTTP/1.1, for all of its tabs together.
const MOST = 2;

/** @type {Map<string, AbortController>} */
const followed = new Map();
/** Videos whose events the server does not give. */
const refused = new Set();
const visible = signal(!document.hidden);
const ends = signal(0);

document.addEventListener('visibilitychange', () => (visible.value = !document.hidden));

/** Whether the list must be asked for the progress of some video. */
export function hasLiveUnfollowed() {
  return live().some((v) => !followed.has(v.id));
}

/** Runs for as long as the page is open. */
export function followLive() {
  effect(() => {
    ends.value;
    changes.value;
    const wanted = visible.value && keyWanted.value === null ? choose(open.value) : [];
    for (const [id, reading] of followed) if (!wanted.includes(id)) stop(id, reading);
    for (const id of wanted) if (!followed.has(id)) start(id);
  });
}

/** The one that is open, then those that will be done first. */
function choose(opened) {
  const ids = live()
    .map((v) => v.id)
    .filter((id) => !refused.has(id));
  const first = opened && isLive(opened) && !refused.has(opened) ? [opened] : [];
  return [...new Set([...first, ...ids])].slice(0, MOST);
}

function isLive(id) {
  const video = peek(id);
  return video !== undefined && !FINAL.has(video.state);
}

function stop(id, reading) {
  followed.delete(id);
  reading.abort();
}

async function start(id) {
  const reading = new AbortController();
  followed.set(id, reading);
  try {
    await follow(id, (event) => take(id, event), reading.signal);
  } catch {
    refused.add(id);
  }
  if (followed.get(id) === reading) {
    followed.delete(id);
    ends.value++;
  }
}

/** A replay tells old states: where the video stands is taken from `progress` alone. */
function take(id, event) {
  if (event.type === 'progress') patch(id, progressOf(event));
  else if (event.type === 'state') patch(id, { attempt: event.attempt, note: event.note });
  else if (event.type === 'preview') putPreview(id, event.step, event.image);
  else if (event.type === 'done') put(event.video);
  else if (event.type === 'deleted') remove(id);
  if (event.type === 'progress' || event.type === 'done') announceProgress(id);
}

function progressOf({ state, progress, step, queue_position, estimated_start_at, estimated_completion_at }) {
  const told = { progress, step, queue_position, estimated_start_at, estimated_completion_at };
  // The final state comes whole, with `done`.
  return FINAL.has(state) ? told : { ...told, state };
}
