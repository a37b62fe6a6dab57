/** The events of one video, read with fetch: EventSource cannot send an API key. */
import { ApiError, send, videoPath } from './api.js';
import { createParser } from './vendor/eventsource-parser.js';

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;

/**
 * Hand on every event until the video is final; a stream that breaks is taken up where it ended.
 * @param {string} id
 * @param {(event: {type: string}) => void} onEvent
 * @param {AbortSignal} signal ends the reading, quietly
 * @throws {ApiError} the server has no events of this video
 */
export async function follow(id, onEvent, signal) {
  const stream = { id, lastEventId: '', done: false, onEvent };
  let pause = FIRST_PAUSE_MS;
  while (!stream.done && !signal.aborted) {
    const before = stream.lastEventId;
    await readOnce(stream, signal).catch((error) => {
      if (error instanceof ApiError && !error.away) throw error;
    });
    pause = stream.lastEventId === before ? Math.min(2 * pause, LONGEST_PAUSE_MS) : FIRST_PAUSE_MS;
    if (!stream.done) await sleep(pause, signal);
  }
}

/**
 * @param {{id: string, lastEventId: string, done: boolean, onEvent: (event: any) => void}} stream
 * @param {AbortSignal} signal
 */
async function readOnce(stream, signal) {
  const headers = { Accept: 'text/event-stream' };
  if (stream.lastEventId) headers['Last-Event-ID'] = stream.lastEventId;
  const response = await send(videoPath(stream.id, '/events'), { headers, signal, cache: 'no-store' });
  const parser = createParser({ onEvent: (event) => take(stream, event) });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done && !stream.done; part = await reader.read()) parser.feed(part.value);
  await reader.cancel();
}

function take(stream, event) {
  if (event.id) stream.lastEventId = event.id;
  const data = JSON.parse(event.data);
  stream.done = data.type === 'done' || data.type === 'deleted';
  stream.onEvent(data);
}

/** @param {number} ms @param {AbortSignal} signal ends the pause */
export function sleep(ms, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve(undefined);
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve(undefined)), { once: true });
  });
}
