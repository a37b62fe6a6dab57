/** What can be done with the open video. Remix and enhance unfold their one field. */
import { cancel, enhance, remix } from '../actions.js';
import { serverNow } from '../api.js';
import { fillFrom } from '../form.js';
import { enhancedSteps } from '../limits.js';
import { download } from '../media.js';
import { leave, show, task } from '../route.js';
import { FINAL } from '../store.js';
import { model } from '../sync.js';
import { html, useEffect, useRef, useState } from '../ui.js';
import { problemOf } from '../wording.js';
import { askToDelete } from './delete_dialog.js';
import { Icon } from './icons.js';
import { ProblemText } from './problem_text.js';

/** @param {{video: import('../types.js').Video}} props */
export function Tasks({ video }) {
  const [problem, setProblem] = useState(null);
  const attempt = (action) =>
    action.then(
      () => setProblem(null),
      (error) => setProblem(problemOf(error, serverNow())),
    );
  const done = FINAL.has(video.state);
  return html`<div class="tasks">
      ${done ? html`<${AfterEnd} video=${video} attempt=${attempt} />` : html`<${Task} icon="cancel"
        act=${() => attempt(cancel(video.id))}>Cancel<//>`}
      <${Task} icon="settings" act=${() => useAgain(video)}>Use its settings<//>
      <${CopyLink} />
      ${done && html`<${Task} icon="remove" act=${() => askToDelete(video.id)}>Delete<//>`}
    </div>
    <${ProblemText} problem=${problem} />
    ${done && task.value === 'remix' && html`<${RemixForm} video=${video} />`}
    ${video.state === 'completed' && task.value === 'enhance' && html`<${EnhanceForm} video=${video} />`}`;
}

function Task({ icon, act, expanded, main = false, children }) {
  return html`<button type="button" class=${main ? 'main' : 'plain'} aria-expanded=${expanded} onClick=${act}><${Icon}
    name=${icon} />${children}</button>`;
}

function AfterEnd({ video, attempt }) {
  const unfold = (what) => () => (task.value = task.peek() === what ? 'look' : what);
  return html`
    ${video.state === 'completed' && html`<${Task} icon="download" main
      act=${() => attempt(download(video.id))}>Download<//>`}
    <${Task} icon="remix" expanded=${task.value === 'remix'} act=${unfold('remix')}>Remix<//>
    ${video.state === 'completed' && html`<${Task} icon="enhance" expanded=${task.value === 'enhance'}
      act=${unfold('enhance')}>Enhance<//>`}
  `;
}

function useAgain(video) {
  fillFrom(video);
  leave();
  scrollTo({ top: 0 });
  document.getElementById('field-prompt').focus();
}

function CopyLink() {
  const [copied, setCopied] = useState('');
  // Browsers give the clipboard to pages over https and on localhost only.
  if (!navigator.clipboard) return null;
  const copy = () =>
    navigator.clipboard.writeText(location.href).then(
      () => setCopied('Copied'),
      () => setCopied('It could not be copied'),
    );
  return html`<${Task} icon="link" act=${copy}>${copied || 'Copy the link'}<//>`;
}

/** A form of one field that makes a new video of this one, and shows it. */
function OneField({ name, label, hint, button, send, children }) {
  const place = useRef(null);
  const given = { id: `task-${name}`, name, 'aria-describedby': 'task-hint task-problem' };
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => place.current.querySelector('textarea, input').focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    const value = new FormData(place.current).get(name);
    await send(String(value)).then(
      ({ id }) => show(id),
      (error) => setProblem(problemOf(error, serverNow())),
    );
    setBusy(false);
  };
  return html`<form ref=${place} class="task-form" noValidate onSubmit=${submit}>
    <label for="task-${name}">${label}</label>
    ${children({ ...given, 'aria-invalid': problem ? 'true' : undefined })}
    <p class="quiet small" id="task-hint">${hint}</p>
    <${ProblemText} problem=${problem} id="task-problem" />
    <button class="main" aria-disabled=${busy}>${button}</button>
  </form>`;
}

function RemixForm({ video }) {
  const hint = 'Everything else stays as it is, the seed too.';
  return html`<${OneField} name="prompt" label="The new prompt" hint=${hint} button="Make the remix"
    send=${(prompt) => remix(video.id, prompt)}>
    ${(given) => html`<textarea rows="3" ...${given}>${video.prompt}</textarea>`}
  <//>`;
}

function EnhanceForm({ video }) {
  const { minimum, maximum } = model.value.limits.num_inference_steps;
  const hint = `It has ${video.num_inference_steps}; up to ${maximum} are possible. Prompt and seed stay the same.`;
  return html`<${OneField} name="steps" label="Steps" hint=${hint} button="Make it better"
    send=${(steps) => enhance(video.id, Number(steps))}>
    ${(given) => html`<input type="number" ...${given} min=${minimum} max=${maximum}
      defaultValue=${enhancedSteps(model.value, video)} />`}
  <//>`;
}
