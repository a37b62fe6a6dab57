/** Addresses of videos and posters. With an API key the page fetches them: `src` cannot send it. */
import { key } from './access.js';
import { send, urlOf, videoPath } from './api.js';
import { useEffect, useState } from './ui.js';

const MOST_KEPT = 60;

/** @type {Map<string, Promise<string>>} blob URLs by path, the longest unused first */
const kept = new Map();

/**
 * Never a link to the object store itself: the page's policy lets it talk to this server alone.
 * @param {string} id @param {'video'|'thumbnail'} variant
 */
export function contentPath(id, variant) {
  return videoPath(id, `/content?variant=${variant}&redirect=false`);
}

/**
 * @param {string} path @param {boolean} wanted false: not yet
 * @returns {{url: string, failed: boolean, fail: () => void}} url is empty until it can be shown
 */
export function useMedia(path, wanted = true) {
  const [found, setFound] = useState({ url: '', failed: false });
  const fail = () => setFound({ url: '', failed: true });
  const secret = key.value;
  useEffect(() => {
    let current = true;
    if (!wanted) return undefined;
    if (!secret) setFound({ url: urlOf(path), failed: false });
    else
      fetched(path).then(
        (url) => current && setFound({ url, failed: false }),
        () => current && fail(),
      );
    return () => (current = false);
  }, [path, wanted, secret]);
  return { ...found, fail };
}

/** @param {string} path @returns {Promise<string>} a blob URL */
export function fetched(path) {
  const url = kept.get(path) ?? fetchBlob(path);
  kept.delete(path);
  kept.set(path, url);
  if (kept.size > MOST_KEPT) forgetOldest();
  return url;
}

async function fetchBlob(path) {
  try {
    return URL.createObjectURL(await (await send(path)).blob());
  } catch (error) {
    kept.delete(path);
    throw error;
  }
}

function forgetOldest() {
  const [path, url] = kept.entries().next().value;
  kept.delete(path);
  url.then(URL.revokeObjectURL, () => {});
}

/** Save the mp4 under the video's id. @param {string} id @throws {Error} as `send` */
export async function download(id) {
  const path = contentPath(id, 'video');
  const link = document.createElement('a');
  link.href = key.peek() ? await fetched(path) : urlOf(path);
  link.download = `${id}.mp4`;
  link.click();
}
