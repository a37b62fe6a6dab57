/** What a screen reader is told without being asked: beginnings, quarters and ends, not every step. */
import { signal } from './ui.js';
import { peek } from './store.js';

export const spoken = signal('');

/** @type {Map<string, string>} the last milestone told of each video */
const told = new Map();

const ENDS = { completed: 'is done', failed: 'failed', cancelled: 'was cancelled' };

/** @param {string} text */
export function announce(text) {
  // A text that is set twice is read once: a space that nobody hears makes it another.
  spoken.value = spoken.peek() === text ? `${text}\u00a0` : text;
}

/** @param {string} id of a video this tab follows */
export function announceProgress(id) {
  const video = peek(id);
  if (!video) return;
  const milestone = milestoneOf(video);
  const before = told.get(id);
  told.set(id, milestone);
  if (before !== undefined && before !== milestone) announce(`“${short(video.prompt)}” ${milestone}`);
}

function milestoneOf(video) {
  if (ENDS[video.state])
    return ENDS[video.state] + (video.error && video.state === 'failed' ? `: ${video.error.message}` : '');
  if (video.state === 'queued') return 'is waiting';
  const quarter = 25 * Math.floor(video.progress / 25);
  return quarter ? `is ${quarter} percent done` : 'has begun';
}

function short(prompt) {
  return prompt.length > 40 ? `${prompt.slice(0, 40)}…` : prompt;
}
