/** The page as a whole. */
import { keyWanted } from '../access.js';
import { spoken } from '../announce.js';
import { away } from '../rounds.js';
import { ready } from '../sync.js';
import { html } from '../ui.js';
import { AwayBanner } from './away_banner.js';
import { Composer } from './composer.js';
import { DeleteDialog } from './delete_dialog.js';
import { Gallery, GallerySkeleton } from './gallery.js';
import { Header } from './header.js';
import { KeyPanel } from './key_panel.js';
import { Viewer } from './viewer.js';

export function App() {
  return html`
    <a class="skip" href="#main">Skip to the content</a>
    <${Header} />
    <main id="main" tabindex="-1">
      <${AwayBanner} />
      <${Content} />
    </main>
    <${Viewer} />
    <${DeleteDialog} />
    <div class="unseen" role="status">${spoken}</div>
  `;
}

function Content() {
  if (keyWanted.value !== null) return html`<${KeyPanel} />`;
  if (ready.value) return html`<${Composer} /><${Gallery} />`;
  return away.value ? null : html`<${GallerySkeleton} />`;
}
