/** Asks before a video is deleted for good. */
import { destroy } from '../actions.js';
import { serverNow } from '../api.js';
import { leave, open } from '../route.js';
import { peek } from '../store.js';
import { html, signal, useLayoutEffect, useRef, useState } from '../ui.js';
import { problemOf } from '../wording.js';
import { ProblemText } from './problem_text.js';

/** Id of the video that is asked about. */
const asked = signal(/** @type {string|null} */ (null));

/** @param {string} id */
export function askToDelete(id) {
  asked.value = id;
}

export function DeleteDialog() {
  return asked.value && html`<${Question} key=${asked.value} id=${asked.value} />`;
}

function Question({ id }) {
  const dialog = useRef(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  useLayoutEffect(() => dialog.current.showModal(), []);
  const done = () => (asked.value = null);
  const confirm = async () => {
    setBusy(true);
    try {
      await destroy(id);
      dialog.current.close();
      if (open.peek() === id) leave();
      document.getElementById('gallery-title')?.focus();
    } catch (error) {
      setProblem(problemOf(error, serverNow()));
      setBusy(false);
    }
  };
  return html`<dialog ref=${dialog} class="ask" role="alertdialog" aria-labelledby="ask-title"
    aria-describedby="ask-text" onClose=${done}>
    <h2 id="ask-title">Delete this video?</h2>
    <p id="ask-text" class="quiet">“${peek(id)?.prompt}” will be gone for everybody and cannot be brought back.</p>
    <${ProblemText} problem=${problem} />
    <div class="row end">
      <button type="button" class="plain" onClick=${() => dialog.current.close()}>Keep it</button>
      <button type="button" class="main danger" disabled=${busy} onClick=${confirm}>Delete</button>
    </div>
  </dialog>`;
}
