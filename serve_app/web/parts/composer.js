/** The prompt and what is asked for with it. */
import { form, fill, problems, sending, submit, unfolded } from '../form.js';
import { examples, model } from '../sync.js';
import { html, useEffect, useRef } from '../ui.js';
import { calm } from './stage.js';
import { Details } from './details.js';
import { described } from './fields.js';
import { Icon } from './icons.js';
import { ProblemText } from './problem_text.js';
import { LengthControl, SizeControl } from './shape_controls.js';

const COUNTED_FROM = 0.7;

export function Composer() {
  const place = useRef(null);
  const send = async (event) => {
    event.preventDefault();
    const video = await submit();
    if (video) bringIntoView(video.id);
    else focusProblem(place.current);
  };
  return html`<form ref=${place} class="composer" noValidate onSubmit=${send}>
    <h1>What would you like to see?</h1>
    <div class="sheet">
      <${Prompt} />
      <div class="controls">
        <${SizeControl} />
        <${LengthControl} />
        <button type="button" class="plain" aria-expanded=${unfolded.value} aria-controls="details"
          onClick=${() => (unfolded.value = !unfolded.value)}>
          <${Icon} name="settings" />Details
        </button>
        <button class="main" aria-disabled=${sending.value}>${sending.value ? 'Sending…' : 'Make the video'}</button>
      </div>
      <${Details} />
    </div>
    <${ProblemText} problem=${problems.value['']} />
    <${Examples} />
  </form>`;
}

function Prompt() {
  const area = useRef(null);
  const { max_prompt_chars: most } = model.value.limits;
  const { prompt } = form.value;
  useEffect(() => grow(area.current), [prompt]);
  const keys = (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) event.currentTarget.form.requestSubmit();
  };
  return html`<div class="prompt-field">
    <label class="unseen" for="field-prompt">Prompt</label>
    <textarea ref=${area} rows="2" ...${described('prompt')} placeholder="Describe the video in your own words"
      value=${prompt}
      onInput=${(event) => fill({ prompt: event.currentTarget.value })} onKeyDown=${keys} />
    ${prompt.length > COUNTED_FROM * most && html`<p
      class="count small ${prompt.length > most ? 'error' : 'quiet'}">${prompt.length} of ${most} characters</p>`}
    <${ProblemText} problem=${problems.value.prompt} id="problem-prompt" />
  </div>`;
}

/** As high as its text, where CSS cannot do it alone (field-sizing). */
function grow(area) {
  if (CSS.supports('field-sizing', 'content')) return;
  area.style.height = 'auto';
  area.style.height = `${area.scrollHeight}px`;
}

function Examples() {
  const { prompts = [], note = '' } = examples.value ?? {};
  if (!prompts.length) return null;
  const use = (prompt) => {
    fill({ prompt });
    document.getElementById('field-prompt').focus();
  };
  return html`<div class="examples">
    <p class="quiet small" id="examples-note">${note}</p>
    <ul aria-labelledby="examples-note">
      ${prompts.map((prompt) => html`<li key=${prompt}><button type="button" class="chip"
        onClick=${() => use(prompt)}>${prompt}</button></li>`)}
    </ul>
  </div>`;
}

function bringIntoView(id) {
  requestAnimationFrame(() => {
    const card = document.querySelector(`.card a[href="#${id}"]`);
    card?.scrollIntoView({ block: 'nearest', behavior: calm.matches ? 'auto' : 'smooth' });
  });
}

function focusProblem(place) {
  requestAnimationFrame(() => place.querySelector('[aria-invalid="true"]')?.focus());
}
