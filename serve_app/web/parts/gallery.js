/** All videos, newest first; further pages come as one scrolls. */
import { serverNow } from '../api.js';
import { order } from '../store.js';
import { hasMore, loadMore } from '../sync.js';
import { html, useEffect, useRef, useState } from '../ui.js';
import { problemOf } from '../wording.js';
import { Card } from './card.js';
import { Mark } from './icons.js';
import { ProblemText } from './problem_text.js';

export function Gallery() {
  const ids = order.value;
  return html`<section class="gallery" aria-labelledby="gallery-title">
    <h2 id="gallery-title" tabindex="-1">Videos</h2>
    ${ids.length ? html`<ul class="grid">${ids.map((id) => html`<${Card} key=${id}
      id=${id} />`)}</ul>` : html`<${Nothing} />`}
    ${hasMore.value && html`<${More} />`}
  </section>`;
}

function Nothing() {
  return html`<div class="empty">
    <${Mark} />
    <p>Nothing here yet. Your first video appears in this place while it is made.</p>
  </div>`;
}

function More() {
  const button = useRef(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const load = async () => {
    setBusy(true);
    setProblem(
      await loadMore().then(
        () => null,
        (error) => problemOf(error, serverNow()),
      ),
    );
    setBusy(false);
  };
  useEffect(() => {
    const watcher = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && load(), {
      rootMargin: '400px',
    });
    watcher.observe(button.current);
    return () => watcher.disconnect();
  }, [order.value.length]);
  return html`<div class="more">
    <button ref=${button} type="button" class="plain" disabled=${busy} onClick=${load}>Show older videos</button>
    <${ProblemText} problem=${problem} />
  </div>`;
}

/** Until the first answer is there. */
export function GallerySkeleton() {
  return html`<div class="skeleton" aria-busy="true">
    <span class="unseen">Loading</span>
    <div class="block tall" />
    <div class="grid">${[0, 1, 2, 3].map((n) => html`<div key=${n} class="block" />`)}</div>
  </div>`;
}
