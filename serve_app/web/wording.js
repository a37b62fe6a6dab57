/** Everything the page says of a video, in words. No I/O. */

/** @typedef {import('./types.js').Video} Video */

const MINUTE_S = 60;
const HOUR_S = 3600;

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 1) return 'a moment';
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * MINUTE_S) return `${Math.round(seconds / MINUTE_S)} min`;
  if (seconds < 48 * HOUR_S) return `${Math.round(seconds / HOUR_S)} h`;
  return `${Math.round(seconds / (24 * HOUR_S))} days`;
}

/** @param {number} from Unix seconds @param {number} nowMs */
export function ago(from, nowMs) {
  const seconds = nowMs / 1000 - from;
  return seconds < 45 ? 'just now' : `${duration(seconds)} ago`;
}

/** @param {number|null} unix */
export function moment(unix) {
  return unix === null ? '' : new Date(unix * 1000).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });
}

/** With seconds. @param {number} unix */
export function timeOfDay(unix) {
  return new Date(unix * 1000).toLocaleTimeString();
}

/** @param {number} frames @param {number} fps */
export function length(frames, fps) {
  return `${(frames / fps).toFixed(1)} s`;
}

/** @param {string} size 'WIDTHxHEIGHT' */
export function sizeText(size) {
  return size.replace('x', ' × ');
}

/** @param {number} count @param {string} one @param {string} [many] */
export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** What happens to the video now, short. @param {Video} video */
export function stateText(video) {
  switch (video.state) {
    case 'queued':
      return queueText(video);
    case 'encoding':
      return 'Reading the prompt';
    case 'sampling':
      return `Step ${video.step} of ${video.num_inference_steps}`;
    case 'decoding':
      return 'Drawing the frames';
    case 'completed':
      return 'Done';
    case 'cancelled':
      return 'Cancelled';
    default:
      return 'Failed';
  }
}

function queueText(video) {
  if (video.queue_position === null) return video.step ? `Waiting, ${plural(video.step, 'step')} done` : 'Waiting';
  return video.queue_position === 0 ? 'Next in the queue' : `${plural(video.queue_position, 'video')} before it`;
}

/** @param {Video} video */
export function qualityText({ quality, draft_reason: reason }) {
  if (!reason) return quality;
  return `${quality}: it would have waited for ${duration(reason.wait_s)}; enhance makes it ${reason.quality}`;
}

/** When it will be done, or begin; empty without a forecast. @param {Video} video @param {number} nowMs */
export function forecast(video, nowMs) {
  const left = (unix) => duration(unix - nowMs / 1000);
  if (video.estimated_completion_at !== null) return `about ${left(video.estimated_completion_at)} left`;
  if (video.state === 'queued' && video.estimated_start_at !== null)
    return `starts in about ${left(video.estimated_start_at)}`;
  return '';
}

/** @param {Video} video @returns {string} what is told of a video that is tried again; empty of others */
export function attemptText(video) {
  if (video.attempt < 2) return '';
  return `Attempt ${video.attempt}${video.note ? `: ${video.note}` : ''}`;
}

/**
 * @param {Error & {param?: string|null, code?: string|null, retryAfterS?: number|null}} error
 * @param {number} nowMs
 * @returns {import('./types.js').Problem}
 */
export function problemOf(error, nowMs) {
  const param = error.param ?? (error.code === 'content_policy' ? 'prompt' : null);
  const retryAt = error.retryAfterS ? nowMs + 1000 * error.retryAfterS : null;
  return { text: error.message, param, retryAt };
}

/** @param {number} retryAt @param {number} nowMs */
export function waitText(retryAt, nowMs) {
  const left = Math.ceil((retryAt - nowMs) / 1000);
  return left > 0 ? `Try again in ${duration(left)}.` : 'You can try again now.';
}

/** @param {{status: string, error: {message: string}|null, queue: Record<string, number>}} health */
export function healthText(health) {
  const waiting = health.queue.queued ?? 0;
  const running = Object.values(health.queue).reduce((sum, count) => sum + count, 0) - waiting;
  if (health.status === 'starting') return waiting ? `Starting, ${waiting} waiting` : 'Starting';
  if (health.status !== 'ok') return 'Not ready';
  if (!waiting && !running) return 'Ready';
  return waiting ? `${running} in work, ${waiting} waiting` : `${running} in work`;
}
