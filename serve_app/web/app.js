/** Begins everything. */
import { followLive } from './live.js';
import { App } from './parts/app.js';
import { keepInSync } from './sync.js';
import { html, render } from './ui.js';

render(html`<${App} />`, document.getElementById('app'));
followLive();
keepInSync();
