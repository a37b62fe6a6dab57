/** The operators' page as a whole. */
import { keyWanted } from '../access.js';
import { AwayBanner } from '../parts/away_banner.js';
import { Header } from '../parts/header.js';
import { KeyPanel } from '../parts/key_panel.js';
import { away } from '../rounds.js';
import { html } from '../ui.js';
import { Gpus } from './gpus.js';
import { Overview } from './overview.js';
import { Queue } from './queue.js';
import { Replicas } from './replicas.js';
import { Videos } from './videos.js';
import { report } from './watch.js';
import { WayView } from './way_view.js';

export function StatusPage() {
  return html`
    <a class="skip" href="#main">Skip to the content</a>
    <${Header}><a class="plain back" href="./">Videos</a><//>
    <main id="main" tabindex="-1">
      <${AwayBanner} />
      <${Content} />
    </main>
    ${keyWanted.value === null && html`<${WayView} />`}
  `;
}

function Content() {
  if (keyWanted.value !== null) return html`<${KeyPanel} />`;
  if (report.value) return html`<${Overview} /><${Queue} /><${Replicas} /><${Gpus} /><${Videos} />`;
  return html`<div aria-busy=${!away.value}>
    <h1 class="status-title">Status</h1>
    <p class="quiet">${away.value ? 'Nothing has been told yet.' : 'Asking the server'}</p>
  </div>`;
}
