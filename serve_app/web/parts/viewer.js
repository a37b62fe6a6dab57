/** One video, large: what it is, what became of it, what can be done with it. Opened by the address. */
import { find } from '../actions.js';
import { serverNow } from '../api.js';
import { open } from '../route.js';
import { FINAL, video as videoOf } from '../store.js';
import { ready } from '../sync.js';
import { html, useEffect, useState } from '../ui.js';
import { problemOf } from '../wording.js';
import { Facts } from './facts.js';
import { ProblemText } from './problem_text.js';
import { Progress } from './progress.js';
import { Sheet } from './sheet.js';
import { Stage } from './stage.js';
import { Tasks } from './tasks.js';

export function Viewer() {
  return open.value && ready.value && html`<${Opened} id=${open.value} />`;
}

function Opened({ id }) {
  const [problem, setProblem] = useState(null);
  const video = videoOf(id);
  useEffect(() => {
    setProblem(null);
    find(id).catch((error) => setProblem(problemOf(error, serverNow())));
  }, [id]);
  return html`<${Sheet} titleId="viewer-title">
    ${video ? html`<${Inside} video=${video} />` : html`<h2
      id="viewer-title">${problem ? 'There is nothing to see' : 'Loading'}</h2><${ProblemText} problem=${problem} />`}
  <//>`;
}

function Inside({ video }) {
  return html`<div class="viewer-stage"><${Stage} video=${video} playing controls /></div>
    <div class="viewer-text">
      <h2 id="viewer-title" class="prompt">${video.prompt}</h2>
      ${!FINAL.has(video.state) && html`<${Progress} video=${video} />`}
      ${video.state === 'failed' && html`<p class="error">It failed: ${video.error?.message}</p>`}
      ${video.state === 'cancelled' && html`<p class="quiet">It was cancelled.</p>`}
      <${Tasks} key=${video.id} video=${video} />
      <${Facts} video=${video} />
    </div>`;
}
