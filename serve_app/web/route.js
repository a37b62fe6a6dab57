/** Which video is open, told by the address: `#video_...` can be copied, sent and reloaded. */
import { signal } from './ui.js';

const HASH = /^#(video_[0-9a-f]{32})$/;

/** Id of the open video, null without one. */
export const open = signal(idInAddress());
/** What is done with it: looked at, remixed, enhanced. */
export const task = signal(/** @type {'look'|'remix'|'enhance'} */ ('look'));

function idInAddress() {
  return HASH.exec(location.hash)?.[1] ?? null;
}

addEventListener('hashchange', () => {
  open.value = idInAddress();
});

/** @param {string} id @param {'look'|'remix'|'enhance'} [what] */
export function show(id, what = 'look') {
  task.value = what;
  location.hash = id;
}

/** Back to the gallery, at once: what is behind the open video can be focused when this returns. */
export function leave() {
  const dialog = document.querySelector('dialog.viewer');
  if (dialog instanceof HTMLDialogElement) dialog.close();
  close();
}

/** The open video was closed; the address is clean again. */
export function close() {
  history.replaceState(null, '', location.pathname + location.search);
  open.value = null;
  task.value = 'look';
}
