/** What may be asked of the model, and the composer's fields as a request. No I/O. */

/** @typedef {import('./types.js').Model} Model @typedef {import('./types.js').VideoForm} VideoForm */

const GRID = 16;
const LATENT_FRAMES = 6;
const RATIOS = [
  { name: 'Wide', ratio: 16 / 9 },
  { name: 'Square', ratio: 1 },
  { name: 'Tall', ratio: 9 / 16 },
];

/** @param {Model} model @returns {VideoForm} */
export function defaults(model) {
  const { limits, defaults: own } = model;
  return {
    prompt: '',
    negative_prompt: '',
    width: String(limits.width.default),
    height: String(limits.height.default),
    num_frames: limits.num_frames.default,
    fps: String(limits.fps.default),
    quality: '',
    num_inference_steps: String(own?.num_inference_steps ?? limits.num_inference_steps.default),
    guidance_scale: own?.guidance_scale === undefined ? '' : String(own.guidance_scale),
    lora: '',
    lora_scale: '',
    seed: '',
    priority: '',
    exact: false,
  };
}

/**
 * The model's own size first, then other shapes of about as many pixels.
 * @param {import('./types.js').Limits} limits
 * @returns {{name: string, width: number, height: number}[]}
 */
export function sizes(limits) {
  const usual = { width: limits.width.default, height: limits.height.default };
  const found = [{ name: shapeOf(usual), ...usual }];
  for (const { name, ratio } of RATIOS) {
    const size = sizeOf(ratio, usual.width * usual.height, limits);
    if (!found.some((one) => one.name === name)) found.push({ name, ...size });
  }
  const most = limits.max_picture_pixels ?? Infinity;
  return found.filter((one) => shapeOf(one) === one.name && one.width * one.height <= most);
}

/** @param {{width: number, height: number}} size */
function shapeOf({ width, height }) {
  if (width === height) return 'Square';
  return width > height ? 'Wide' : 'Tall';
}

function sizeOf(ratio, area, { width, height }) {
  return {
    width: onGrid(Math.sqrt(area * ratio), width),
    height: onGrid(Math.sqrt(area / ratio), height),
  };
}

function onGrid(pixels, { minimum, maximum }) {
  return Math.min(maximum, Math.max(minimum, GRID * Math.round(pixels / GRID)));
}

/**
 * The longest clip of this size, in frames of the form 6k + 1.
 * @param {import('./types.js').Limits} limits @param {number} width @param {number} height
 */
export function mostFrames(limits, width, height) {
  const { minimum, maximum } = limits.num_frames;
  const fitting = Math.floor(limits.max_pixels / (width * height || 1));
  const whole = LATENT_FRAMES * Math.floor((fitting - 1) / LATENT_FRAMES) + 1;
  return Math.max(minimum, Math.min(maximum, whole));
}

/** @param {VideoForm} form @returns {object} the body of POST /v1/videos */
export function toRequest(form) {
  const { prompt, negative_prompt, priority, quality, lora } = form;
  const text = { prompt, negative_prompt, priority, quality, lora };
  const numbers = {
    fps: form.fps,
    num_inference_steps: form.num_inference_steps,
    guidance_scale: form.guidance_scale,
    lora_scale: lora ? form.lora_scale : '',
    seed: form.seed,
  };
  const given = Object.entries(text).filter(([, value]) => value);
  const asNumbers = Object.entries(numbers)
    .filter(([, value]) => value.trim())
    .map(([name, value]) => [name, toNumber(value)]);
  const size = { width: toNumber(form.width), height: toNumber(form.height), num_frames: form.num_frames };
  return { ...Object.fromEntries([...given, ...asNumbers]), ...size, ...(form.exact ? { exact: true } : {}) };
}

/** What is no number goes to the server as it was typed, which says what is wrong with it. @param {string} text */
function toNumber(text) {
  const number = Number(text);
  return text.trim() && Number.isFinite(number) ? number : text;
}

/**
 * The same settings again.
 * @param {import('./types.js').Video} video
 * @returns {VideoForm}
 */
export function formOf(video) {
  const [width, height] = video.size.split('x');
  return {
    prompt: video.prompt,
    negative_prompt: video.negative_prompt,
    width,
    height,
    num_frames: video.num_frames,
    fps: String(video.fps),
    quality: video.quality ?? '',
    num_inference_steps: String(video.num_inference_steps),
    guidance_scale: String(video.guidance_scale),
    lora: video.lora ?? '',
    lora_scale: video.lora ? String(video.lora_scale) : '',
    seed: String(video.seed),
    priority: '',
    exact: video.exact,
  };
}

/**
 * The steps of an enhanced video, unless others are asked for.
 * @param {Model} model @param {import('./types.js').Video} video
 */
export function enhancedSteps(model, video) {
  if (video.draft_reason) return video.draft_reason.num_inference_steps;
  const wished = model.defaults?.enhanced_steps ?? 2 * video.num_inference_steps;
  return Math.min(model.limits.num_inference_steps.maximum, Math.max(wished, video.num_inference_steps + 1));
}
