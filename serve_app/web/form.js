/** What stands in the composer, and what is wrong with it. The draft outlives a reload of the tab. */
import { create } from './actions.js';
import { serverNow } from './api.js';
import { defaults, formOf, mostFrames, toRequest } from './limits.js';
import { model } from './sync.js';
import { effect, signal } from './ui.js';
import { problemOf } from './wording.js';

const DRAFT = 'mochi-serve.draft';
/** Fields of the API that one control of the composer stands for. */
const CONTROL = { size: 'width', height: 'width', seconds: 'num_frames' };

/** @type {any} a VideoForm, null until the model is known */
export const form = signal(null);
/** @type {any} by control; '' for what concerns none */
export const problems = signal({});
export const sending = signal(false);
/** Whether the folded fields are shown. */
export const unfolded = signal(false);

effect(() => {
  if (model.value && !form.peek()) form.value = { ...defaults(model.value), ...draft() };
});
effect(() => {
  if (form.value) sessionStorage.setItem(DRAFT, JSON.stringify(form.value));
});

function draft() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT) ?? '{}');
  } catch {
    return {};
  }
}

/** @param {Partial<import('./types.js').VideoForm>} changed */
export function fill(changed) {
  const next = { ...form.peek(), ...changed };
  const most = mostFrames(model.peek().limits, Number(next.width), Number(next.height));
  form.value = { ...next, num_frames: Math.min(next.num_frames, most) };
  const rest = Object.entries(problems.peek()).filter(([name]) => name && !(name in changed));
  problems.value = Object.fromEntries(rest);
}

/** @param {import('./types.js').Video} video whose settings are used again */
export function fillFrom(video) {
  fill(formOf(video));
}

/** Everything as the model has it, the prompt left alone. */
export function resetSettings() {
  fill({ ...defaults(model.peek()), prompt: form.peek().prompt });
}

/**
 * Send what stands in the form.
 * @returns {Promise<import('./types.js').Video|null>} null: `problems` tells why, by control
 */
export async function submit() {
  if (sending.peek()) return null;
  if (!form.peek().prompt.trim())
    return refuse({ param: 'prompt', text: 'Write what the video should show.', retryAt: null });
  sending.value = true;
  try {
    const video = await create(toRequest(form.peek()));
    problems.value = {};
    return video;
  } catch (error) {
    return refuse(problemOf(error, serverNow()));
  } finally {
    sending.value = false;
  }
}

function refuse(problem) {
  const control = CONTROL[problem.param] ?? problem.param ?? '';
  const known = control in form.peek() ? control : '';
  if (!['', 'prompt', 'width', 'num_frames'].includes(known)) unfolded.value = true;
  problems.value = { [known]: problem };
  return null;
}
