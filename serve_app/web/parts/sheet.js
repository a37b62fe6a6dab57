/** A large view over the page, which stays as it is behind it. Escape, the cross, or a click beside it closes it. */
import { close } from '../route.js';
import { html, useLayoutEffect, useRef } from '../ui.js';
import { Icon } from './icons.js';

/** @param {{titleId: string, kind?: string, children: any}} props titleId: of the heading that names it */
export function Sheet({ titleId, kind = '', children }) {
  const dialog = useRef(null);
  // Before what is inside takes the focus.
  useLayoutEffect(() => dialog.current.showModal(), []);
  // The event comes late: another video may be open by then, in a dialog of its own.
  const closed = () => dialog.current && close();
  const aside = (event) => event.target === dialog.current && dialog.current.close();
  return html`<dialog
    ref=${dialog}
    class="viewer ${kind}"
    aria-labelledby=${titleId}
    onClose=${closed}
    onClick=${aside}
  >
    <div class="viewer-inside">
      <button type="button" class="round shut" aria-label="Close" title="Close" onClick=${() => dialog.current.close()}>
        <${Icon} name="cancel" />
      </button>
      ${children}
    </div>
  </dialog>`;
}
