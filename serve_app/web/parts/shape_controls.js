/** Size and length: the two settings that are always in sight. */
import { fill, form, problems } from '../form.js';
import { mostFrames, sizes } from '../limits.js';
import { model } from '../sync.js';
import { html, signal } from '../ui.js';
import { length, sizeText } from '../wording.js';
import { described, NumberField } from './fields.js';
import { ProblemText } from './problem_text.js';

const ownSize = signal(false);

export function SizeControl() {
  const { limits } = model.value;
  const { width, height } = form.value;
  const offered = sizes(limits);
  const listed = offered.some((one) => String(one.width) === width && String(one.height) === height);
  const own = ownSize.value || !listed;
  const choose = (event) => {
    ownSize.value = event.currentTarget.value === 'own';
    if (ownSize.peek()) return;
    const [w, h] = event.currentTarget.value.split('x');
    fill({ width: w, height: h });
  };
  return html`<div class="control">
    <label for="size">Size</label>
    <select id="size" value=${own ? 'own' : `${width}x${height}`} onChange=${choose}>
      ${offered.map((one) => html`<option key=${one.name}
        value="${one.width}x${one.height}">${one.name}, ${sizeText(`${one.width}x${one.height}`)}</option>`)}
      <option value="own">Own size</option>
    </select>
    ${own && html`<${OwnSize} limits=${limits} />`}
    ${!own && html`<${ProblemText} problem=${problems.value.width} />`}
  </div>`;
}

function OwnSize({ limits }) {
  const bounds = (one) => `${one.minimum} to ${one.maximum}`;
  return html`<div class="pair">
    <${NumberField} name="width" label="Width" hint=${bounds(limits.width)} bounds=${limits.width} step=${16} />
    <${NumberField} name="height" label="Height" hint=${bounds(limits.height)} bounds=${limits.height} step=${16} />
  </div>`;
}

export function LengthControl() {
  const { limits } = model.value;
  const { num_frames: frames, fps, width, height } = form.value;
  const most = mostFrames(limits, Number(width), Number(height));
  const text = `${length(frames, Number(fps) || limits.fps.default)}, ${frames} frames`;
  return html`<div class="control">
    <label for="field-num_frames">Length <output>${text}</output></label>
    <input type="range" ...${described('num_frames')} min=${limits.num_frames.minimum} max=${most} step="6"
      value=${frames}
      aria-valuetext=${text} onInput=${(event) => fill({ num_frames: Number(event.currentTarget.value) })} />
    <${ProblemText} problem=${problems.value.num_frames} id="problem-num_frames" />
  </div>`;
}
