/** The settings that most people leave alone. */
import { fill, form, resetSettings, unfolded } from '../form.js';
import { model } from '../sync.js';
import { html } from '../ui.js';
import { duration } from '../wording.js';
import { described, Field, NumberField } from './fields.js';

export function Details() {
  if (!unfolded.value) return html`<div id="details" hidden />`;
  const { limits, defaults = {} } = model.value;
  const range = ({ minimum, maximum, default: usual }) => `${minimum} to ${maximum}, usually ${usual}`;
  const guidance = { minimum: 1, maximum: limits.max_guidance_scale };
  return html`<div id="details" class="details">
    <${Quality} />
    <${NumberField} name="num_inference_steps" label="Steps" hint=${range(limits.num_inference_steps)}
      bounds=${limits.num_inference_steps} placeholder="usual" />
    <${NumberField} name="guidance_scale" label="Guidance"
      hint=${range({ ...guidance, default: defaults.guidance_scale ?? 'left out' })}
      bounds=${guidance} step="any" placeholder="usual" />
    <${Lora} />
    <${NumberField} name="fps" label="Frames a second" hint=${range(limits.fps)} bounds=${limits.fps} />
    <${NumberField} name="seed" label="Seed" hint="The same seed gives the same video; empty draws one"
      placeholder="random"
      bounds=${{ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }} />
    <${Priority} />
    <${Negative} />
    <div class="row wide">
      <label class="check"><input type="checkbox" id="field-exact" checked=${form.value.exact}
        onChange=${(event) => fill({ exact: event.currentTarget.checked })} />
        Bit for bit repeatable (slower when much is asked for)</label>
      <button type="button" class="plain" onClick=${resetSettings}>Back to the usual</button>
    </div>
  </div>`;
}

/** A quality brings its own steps and guidance, which may still be changed; with steps `auto` is never a draft. */
function Quality() {
  const { qualities = [], defaults, draft_when_wait_over_s: limit } = model.value;
  if (qualities.length < 2) return null;
  const set = (event) => {
    const quality = event.currentTarget.value;
    const own = qualities.find(({ name }) => name === quality);
    const text = (value) => (value === undefined ? '' : String(value));
    fill({
      quality,
      num_inference_steps: text(own?.num_inference_steps),
      guidance_scale: text(own?.guidance_scale),
    });
  };
  const hint =
    form.value.quality === 'auto'
      ? `A draft if it would wait for more than ${duration(limit)}; it can be enhanced later`
      : 'With how much work the steps are computed';
  return html`<${Field} name="quality" label="Quality" hint=${hint}>
    <select ...${described('quality', true)} value=${form.value.quality || defaults?.quality} onChange=${set}>
      ${limit && html`<option value="auto">Auto</option>`}
      ${qualities.map(({ name }) => html`<option value=${name}>${name[0].toUpperCase()}${name.slice(1)}</option>`)}
    </select>
  <//>`;
}

/** Weights that the server has beside the model's own, and by how much they count. */
function Lora() {
  const { loras = [] } = model.value;
  if (!loras.length) return null;
  const { lora } = form.value;
  const hint = loras.find(({ name }) => name === lora)?.description || 'Changes what the model makes';
  return html`<${Field} name="lora" label="LoRA" hint=${hint}>
      <select ...${described('lora', true)} value=${lora} onChange=${(event) => fill({ lora: event.currentTarget.value })}>
        <option value="">None</option>
        ${loras.map(({ name }) => html`<option value=${name}>${name}</option>`)}
      </select>
    <//>
    ${lora && html`<${NumberField} name="lora_scale" label="LoRA's weight" hint="0 to 2, usually 1"
      bounds=${{ minimum: 0, maximum: 2 }} step="any" placeholder="usual" />`}`;
}

function Priority() {
  const set = (event) => fill({ priority: event.currentTarget.value });
  return html`<${Field} name="priority" label="Priority" hint="What is more urgent goes first">
    <select ...${described('priority', true)} value=${form.value.priority} onChange=${set}>
      <option value="">Usual</option>
      <option value="interactive">Urgent</option>
      <option value="standard">Standard</option>
      <option value="batch">Whenever there is room</option>
    </select>
  <//>`;
}

function Negative() {
  return html`<div class="wide"><${Field} name="negative_prompt" label="Not in the picture"
    hint="What the video should stay away from">
    <textarea rows="1" ...${described('negative_prompt', true)} value=${form.value.negative_prompt}
      onInput=${(event) => fill({ negative_prompt: event.currentTarget.value })} />
  <//></div>`;
}
