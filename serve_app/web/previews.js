/** The newest picture of each video that is being sampled, as a blob URL. */
import { signal } from './ui.js';
import { json, videoPath } from './api.js';
import { FINAL, live, peek } from './store.js';

/** @type {Map<string, {url: any, step: number}>} */
const pictures = new Map();

function entry(id) {
  if (!pictures.has(id)) pictures.set(id, { url: signal(''), step: 0 });
  return pictures.get(id);
}

/** @param {string} id @returns {string} follows the picture in a component; empty while there is none */
export function preview(id) {
  return entry(id).url.value;
}

/** @param {string} id @param {number} step @param {string} base64 a WebP */
export function putPreview(id, step, base64) {
  const { url } = entry(id);
  if (url.peek()) URL.revokeObjectURL(url.peek());
  entry(id).step = step;
  url.value = URL.createObjectURL(
    new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: 'image/webp' }),
  );
}

/** Fetch the pictures of videos whose events this tab does not read, where there are newer ones. */
export async function refreshPreviews() {
  const newer = live().filter((v) => v.state === 'sampling' && (v.preview_step ?? 0) > entry(v.id).step);
  await Promise.all(newer.map((v) => fetchPreview(v.id, v.preview_step)));
}

async function fetchPreview(id, step) {
  entry(id).step = step;
  try {
    const { preview } = await json(videoPath(id, '?include=preview'), { cache: 'no-store' });
    // There is none if it was sampled to its end in between; the picture's own address answers that with an error.
    if (preview) putPreview(id, step, preview);
  } catch {
    // It was deleted in between, or the server is away, which the page says elsewhere.
  }
}

/** Free the pictures of videos that need none any more. */
export function tidyPreviews() {
  for (const [id, { url }] of pictures) {
    const video = peek(id);
    if (video && !FINAL.has(video.state)) continue;
    if (url.peek()) URL.revokeObjectURL(url.peek());
    pictures.delete(id);
  }
}
