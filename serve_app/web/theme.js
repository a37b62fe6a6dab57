/** Light or dark: the system's choice until one is made here; theme-early.js applies it before the first paint. */
import { signal } from './ui.js';

const NAME = 'mochi-serve.theme';
const systemDark = matchMedia('(prefers-color-scheme: dark)');

/** @returns {'light'|'dark'} */
function current() {
  const chosen = document.documentElement.dataset.theme;
  return chosen === 'light' || chosen === 'dark' ? chosen : systemDark.matches ? 'dark' : 'light';
}

export const theme = signal(current());
systemDark.addEventListener('change', () => (theme.value = current()));

export function toggleTheme() {
  const next = current() === 'dark' ? 'light' : 'dark';
  document.documentElement.dataset.theme = next;
  localStorage.setItem(NAME, next);
  theme.value = next;
}

// Another tab of this page follows.
addEventListener('storage', (event) => {
  if (event.key !== NAME) return;
  if (event.newValue) document.documentElement.dataset.theme = event.newValue;
  theme.value = current();
});
