/** Name, how the server is, the key, the theme. */
import { forgetKey, key } from '../access.js';
import { health } from '../health.js';
import { theme, toggleTheme } from '../theme.js';
import { html } from '../ui.js';
import { healthText } from '../wording.js';
import { Icon, Mark } from './icons.js';

/** @param {{children?: any}} props children: where the page leads to, in place of how the server is */
export function Header({ children }) {
  return html`<header class="header">
    <a class="brand" href="./"><${Mark} /><span>mochi</span></a>
    ${children ?? html`<${HealthPill} />`}
    ${key.value && html`<button type="button" class="plain" onClick=${forgetKey}><${Icon}
      name="key" />Forget the key</button>`}
    <${ThemeButton} />
  </header>`;
}

function HealthPill() {
  const report = health.value;
  if (!report?.queue) return html`<span class="pill" />`;
  const why =
    report.error?.message ??
    report.waiting_for ??
    Object.values(report.devices)
      .flat()
      .map((one) => one.replica)
      .join(', ');
  const look = { ok: 'good', starting: '' }[report.status] ?? 'bad';
  return html`<a class="pill ${look}" href="status" title=${why}>${healthText(report)}</a>`;
}

function ThemeButton() {
  const next = theme.value === 'dark' ? 'light' : 'dark';
  return html`<button type="button" class="round" aria-label="Use the ${next} theme" title="Use the ${next} theme"
    onClick=${toggleTheme}>
    <${Icon} name=${next === 'light' ? 'sun' : 'moon'} />
  </button>`;
}
