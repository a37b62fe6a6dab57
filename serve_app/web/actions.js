/** What a person can do to videos. Each returns once the server has done it, or throws why it did not. */
import { announce } from './announce.js';
import { ApiError, json, post, videoPath } from './api.js';
import { refreshNow } from './rounds.js';
import { FINAL, peek, put, remove } from './store.js';
import { tellOtherTabs } from './sync.js';

/** The request whose outcome is not known, and the key under which a repeat of it makes no second video. */
let unsure = { body: '', key: '' };

/** @param {object} body of POST /v1/videos */
export async function create(body) {
  return made(await repeatable('v1/videos', body));
}

/** @param {string} id @param {string} prompt */
export async function remix(id, prompt) {
  return made(await repeatable(videoPath(id, '/remix'), { prompt }));
}

/** @param {string} id @param {number} steps */
export async function enhance(id, steps) {
  return made(await repeatable(videoPath(id, '/enhance'), { num_inference_steps: steps }));
}

/** @param {string} id */
export async function cancel(id) {
  return changed(await post(videoPath(id, '/cancel'), {}));
}

/** @param {string} id */
export async function destroy(id) {
  await json(videoPath(id), { method: 'DELETE' }).catch((error) => {
    // Somebody else was faster: what was asked for is so.
    if (error.status !== 404) throw error;
  });
  remove(id);
  tellOtherTabs();
  announce('The video is deleted.');
}

/** Fetch one that the list has not shown yet. @param {string} id @throws {ApiError} 404: there is none */
export async function find(id) {
  if (!peek(id)) put(await json(videoPath(id)), undefined, false);
}

async function repeatable(path, body) {
  const asked = path + JSON.stringify(body);
  if (unsure.body !== asked) unsure = { body: asked, key: randomKey() };
  const done = () => (unsure = { body: '', key: '' });
  try {
    const video = await post(path, body, { 'Idempotency-Key': unsure.key });
    done();
    return video;
  } catch (error) {
    if (error instanceof ApiError && !error.away) done();
    throw error;
  }
}

/** crypto.randomUUID is only there over https and on localhost. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function made(video) {
  changed(video);
  announce(FINAL.has(video.state) ? 'The video is there already.' : 'The video is on its way.');
  return video;
}

function changed(video) {
  put(video);
  tellOtherTabs();
  refreshNow();
  return video;
}
