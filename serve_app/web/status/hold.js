/** Whether somebody points at a row, or has come to one by keyboard: then rows hold still. */
import { signal, useRef } from '../ui.js';
import { settle } from './steady.js';

/** Around rows that hold still. */
export const STILL = 'still';
// Who has left the pointer there, as on a screen on a wall, wants to see what comes.
const IDLE_MS = 60_000;

export const held = signal(false);

const hovers = matchMedia('(hover: hover)');
let timer = 0;

/** Runs for as long as the page is open. */
export function watchPointer() {
  const look = () => {
    clearTimeout(timer);
    held.value = isHeld();
    if (held.value) timer = setTimeout(() => (held.value = false), IDLE_MS);
  };
  for (const happening of ['pointermove', 'pointerover', 'pointerout', 'focusin', 'focusout', 'keydown', 'scroll'])
    document.addEventListener(happening, look, { passive: true });
}

/** A finger leaves no pointer behind, though browsers go on to call what it touched hovered. */
function isHeld() {
  const pointed = `.${STILL} :focus-visible` + (hovers.matches ? `, .${STILL}:hover` : '');
  return document.querySelector(pointed) !== null;
}

/**
 * The rows of a component, as `settle` has them.
 * @template T
 * @param {T[]} values @param {(value: T) => string} keyOf
 */
export function useSteady(values, keyOf) {
  const shown = useRef([]);
  const settled = settle(shown.current, values, keyOf, held.value && shown.current.length > 0);
  shown.current = settled.rows;
  return settled;
}
