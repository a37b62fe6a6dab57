/** Where a video is seen: the poster or the film, a preview while it is made, or why there is nothing. */
import { contentPath, useMedia } from '../media.js';
import { preview } from '../previews.js';
import { FINAL } from '../store.js';
import { model } from '../sync.js';
import { html } from '../ui.js';
import { Icon, Mark } from './icons.js';

export const calm = matchMedia('(prefers-reduced-motion: reduce)');

/**
 * @param {{video: import('../types.js').Video, playing: boolean, controls?: boolean}} props
 *   playing: the film is wanted, not only its poster
 */
export function Stage({ video, playing, controls = false }) {
  const own = ratioOf(video.size);
  const { width, height } = model.value.limits;
  // Cards are all of the model's usual shape, so that rows are even; the large view has the video's own.
  const ratio = controls ? own : width.default / height.default;
  return html`<div class="stage ${ratio === own ? '' : 'framed'}"
    style=${{ aspectRatio: String(ratio) }}>${inside(video, playing, controls)}</div>`;
}

function ratioOf(size) {
  const [width, height] = size.split('x').map(Number);
  return width / height;
}

function inside(video, playing, controls) {
  if (video.state === 'completed') return html`<${Film} video=${video} playing=${playing} controls=${controls} />`;
  if (FINAL.has(video.state))
    return html`<div class="nothing"><${Icon} name=${video.state === 'failed' ? 'warning' : 'cancel'} /></div>`;
  return html`<${Making} video=${video} />`;
}

function Making({ video }) {
  const picture = preview(video.id);
  if (!picture) return html`<div class="nothing waiting"><${Mark} /></div>`;
  return html`<img class="around" src=${picture} alt="" /><img class="preview" src=${picture}
    alt="What is there so far" />`;
}

function Film({ video, playing, controls }) {
  const poster = useMedia(contentPath(video.id, 'thumbnail'));
  const film = useMedia(contentPath(video.id, 'video'), playing);
  if (film.failed) return html`<div class="nothing"><p>The file of this video cannot be had.</p></div>`;
  const still =
    poster.url &&
    html`<img class="around" src=${poster.url} alt="" loading="lazy" />
    <img src=${poster.url} alt="" loading="lazy" onError=${poster.fail} />`;
  if (!playing || !film.url) return still || html`<div class="nothing" />`;
  return html`${still}<video src=${film.url} loop muted autoplay=${!calm.matches} playsinline controls=${controls}
    aria-label=${video.prompt} onError=${film.fail} />`;
}
