/** The libraries under one roof: components are functions that return `html` templates and read signals. */
import { h, render } from './vendor/preact.js';
import htm from './vendor/htm.js';

export { render };
export { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from './vendor/preact-hooks.js';
export { batch, computed, effect, signal, untracked } from './vendor/signals.js';

export const html = htm.bind(h);
