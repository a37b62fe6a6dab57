/** Begins the page of the operators. */
import { html, render } from '../ui.js';
import { watchPointer } from './hold.js';
import { StatusPage } from './page.js';
import { watch } from './watch.js';

render(html`<${StatusPage} />`, document.getElementById('app'));
watchPointer();
watch();
