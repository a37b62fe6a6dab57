/** Asks for the API key where the server wants one. */
import { key, keyWanted, useKey } from '../access.js';
import { html, useEffect, useRef } from '../ui.js';
import { Icon } from './icons.js';

export function KeyPanel() {
  const input = useRef(null);
  useEffect(() => input.current.focus(), []);
  const refused = key.value !== '';
  const submit = (event) => {
    event.preventDefault();
    const fields = new FormData(event.currentTarget);
    useKey(String(fields.get('key')).trim(), fields.has('remember'));
  };
  return html`<form class="panel" onSubmit=${submit}>
    <h1><${Icon} name="key" />This server needs a key</h1>
    <p class="quiet">Whoever runs it gives them out. The key stays in this browser and is sent to this server only.</p>
    <label for="key">API key</label>
    <input ref=${input} id="key" name="key" type="password" required autocomplete="off" spellcheck="false"
      placeholder="ms-…" aria-invalid=${refused} aria-describedby=${refused ? 'key-error' : undefined} />
    ${refused && html`<p class="error" id="key-error" role="alert">${keyWanted.value}</p>`}
    <label class="check"><input type="checkbox" name="remember" checked />Remember it in this browser</label>
    <button class="main">Go on</button>
  </form>`;
}
