/** The server's time as a signal that ticks each second while somebody looks. */
import { serverNow } from './api.js';
import { signal } from './ui.js';

/** Milliseconds since 1970. */
export const clock = signal(serverNow());

setInterval(() => {
  if (!document.hidden) clock.value = serverNow();
}, 1000);
