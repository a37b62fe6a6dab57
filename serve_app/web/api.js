/** HTTP: every request of the page goes through `send`, every error leaves it as one of two classes. */
import { authorization, key, keyWanted } from './access.js';

const REQUEST_MS = 30_000;

/** The server answered, and the answer is no. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{message?: string, code?: string|null, param?: string|null}} body of OpenAI's error envelope
   * @param {number|null} retryAfterS
   */
  constructor(status, body, retryAfterS) {
    super(body.message ?? `The server answered ${status} without saying why.`);
    this.status = status;
    this.code = body.code ?? null;
    this.param = body.param ?? null;
    this.retryAfterS = retryAfterS;
  }

  /** Nothing is wrong with the request: a part of the server is away. */
  get away() {
    return this.status === 502 || this.status === 503 || this.status === 504;
  }
}

/** No answer came. Whether the server did what was asked is unknown. */
export class UnreachableError extends Error {
  constructor() {
    super('The server does not answer.');
  }

  get away() {
    return true;
  }
}

let clockAheadMs = 0;

/** The server's time in milliseconds: forecasts are told by its clock, not by this machine's. */
export function serverNow() {
  return Date.now() + clockAheadMs;
}

/** @param {string} path relative to the page, so that the app may lie below a path of a proxy */
export function urlOf(path) {
  return new URL(path, document.baseURI).href;
}

/** @param {string} id @param {string} [rest] */
export function videoPath(id, rest = '') {
  return `v1/videos/${encodeURIComponent(id)}${rest}`;
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} a good one
 * @throws {ApiError|UnreachableError}
 */
export async function send(path, init = {}) {
  const headers = { ...init.headers, ...authorization() };
  const asked = key.peek();
  const response = await reach(urlOf(path), { ...init, headers });
  readClock(response);
  if (response.ok) return response;
  const error = await errorOf(response);
  // A late answer to an older key says nothing about the one in use.
  if (error.status === 401 && asked === key.peek()) keyWanted.value = error.message;
  throw error;
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<any>} */
export async function json(path, init = {}) {
  return (await answer(path, init)).body;
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<{body: any, headers: Headers}>} */
export async function answer(path, init = {}) {
  const response = await send(path, { signal: AbortSignal.timeout(REQUEST_MS), ...init });
  return { body: parse(await response.text()), headers: response.headers };
}

/** @param {string} path @param {object} body @param {Record<string, string>} [headers] */
export function post(path, body, headers = {}) {
  return json(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });
}

/** @param {string} url @param {RequestInit} init */
async function reach(url, init) {
  try {
    return await fetch(url, init);
  } catch (error) {
    if (init.signal?.aborted && init.signal.reason?.name !== 'TimeoutError') throw error;
    throw new UnreachableError();
  }
}

/** @param {Response} response */
function readClock(response) {
  const told = Date.parse(response.headers.get('date') ?? '');
  if (!Number.isNaN(told)) clockAheadMs = Math.abs(told - Date.now()) < 2000 ? 0 : told - Date.now();
}

/** @param {Response} response */
async function errorOf(response) {
  const retry = Number.parseFloat(response.headers.get('retry-after') ?? '');
  const body = await response.json().catch(() => ({}));
  return new ApiError(response.status, body?.error ?? {}, Number.isFinite(retry) ? retry : null);
}

/** Seeds go up to 2^63: those that a double cannot hold stay text. @param {string} text */
export function parse(text) {
  return JSON.parse(text, (name, value, context) =>
    name === 'seed' && typeof value === 'number' && !Number.isSafeInteger(value) ? (context?.source ?? value) : value,
  );
}
