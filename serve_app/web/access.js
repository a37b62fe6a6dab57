/** The API key, if the server wants one: where it is kept and whether it must be asked for. */
import { signal } from './ui.js';

const NAME = 'mochi-serve.key';

/** The key, '' without one. */
export const key = signal(localStorage.getItem(NAME) ?? sessionStorage.getItem(NAME) ?? '');

/** Why a key is asked for, in the server's words; null while none is. */
export const keyWanted = signal(/** @type {string|null} */ (null));

/**
 * Use a key from now on.
 * @param {string} value
 * @param {boolean} remember also after this browser window is closed
 */
export function useKey(value, remember) {
  forgetKey();
  (remember ? localStorage : sessionStorage).setItem(NAME, value);
  key.value = value;
  keyWanted.value = null;
}

export function forgetKey() {
  localStorage.removeItem(NAME);
  sessionStorage.removeItem(NAME);
  key.value = '';
}

/** Tells a request's headers whose it is. @returns {Record<string, string>} */
export function authorization() {
  return key.peek() ? { Authorization: `Bearer ${key.peek()}` } : {};
}
