/** Labelled controls of the composer: each shows its own problem and is described by it. */
import { fill, form, problems } from '../form.js';
import { html } from '../ui.js';
import { ProblemText } from './problem_text.js';

/** Attributes that tie a control to its hint and its problem. @param {string} name @param {boolean} [hinted] */
export function described(name, hinted = false) {
  const problem = problems.value[name];
  const ids = [hinted && `hint-${name}`, problem && `problem-${name}`].filter(Boolean).join(' ');
  return { id: `field-${name}`, 'aria-invalid': problem ? 'true' : undefined, 'aria-describedby': ids || undefined };
}

/** @param {{name: string, label: string, hint?: string, children: any}} props */
export function Field({ name, label, hint, children }) {
  return html`<div class="field">
    <label for="field-${name}">${label}</label>
    ${children}
    ${hint && html`<p class="quiet small" id="hint-${name}">${hint}</p>`}
    <${ProblemText} problem=${problems.value[name]} id="problem-${name}" />
  </div>`;
}

/**
 * @param {{name: string, label: string, hint?: string, placeholder?: string, step?: number|string,
 *   bounds?: {minimum: number, maximum: number}}} props
 */
export function NumberField({ name, label, hint, placeholder, bounds, step = 1 }) {
  return html`<${Field} name=${name} label=${label} hint=${hint}>
    <input type="number" inputmode="decimal" ...${described(name, Boolean(hint))} min=${bounds?.minimum}
      max=${bounds?.maximum} step=${step}
      placeholder=${placeholder} value=${form.value[name]}
        onInput=${(event) => fill({ [name]: event.currentTarget.value })} />
  <//>`;
}
