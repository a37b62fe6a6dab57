/** The settings of a video, where it comes from, and its history. */
import { json, serverNow, videoPath } from '../api.js';
import { clock } from '../clock.js';
import { FINAL } from '../store.js';
import { html, useEffect, useState } from '../ui.js';
import { ago, duration, length, moment, problemOf, qualityText, sizeText, timeOfDay } from '../wording.js';
import { ProblemText } from './problem_text.js';

/** @param {{video: import('../types.js').Video}} props */
export function Facts({ video }) {
  return html`<dl class="facts-list">
      ${rows(video).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
    <${History} key=${video.id} video=${video} />`;
}

function rows(video) {
  const origin = video.remixed_from_video_id ?? video.enhanced_from_video_id;
  const how = video.remixed_from_video_id ? 'Remix of' : 'Enhanced from';
  return [
    ['Size', sizeText(video.size)],
    ['Length', `${length(video.num_frames, video.fps)}, ${video.num_frames} frames`],
    video.quality && ['Quality', qualityText(video)],
    ['Steps', video.num_inference_steps],
    ['Guidance', video.guidance_scale],
    video.lora && ['LoRA', `${video.lora}, ${video.lora_scale}`],
    ['Seed', String(video.seed)],
    video.negative_prompt && ['Not in the picture', video.negative_prompt],
    origin && [how, html`<a href="#${origin}">the video before</a>`],
    ['Made', html`<time title=${moment(video.created_at)}>${ago(video.created_at, clock.value)}</time>`],
    video.completed_at && ['Took', duration(video.completed_at - video.created_at)],
    video.expires_at && ['Kept until', moment(video.expires_at)],
  ].filter(Boolean);
}

function History({ video }) {
  const [moves, setMoves] = useState([]);
  const [problem, setProblem] = useState(null);
  const [unfolded, setUnfolded] = useState(false);
  useEffect(() => {
    let current = true;
    const asked = unfolded ? json(videoPath(video.id, '/history')) : Promise.resolve(null);
    asked.then(
      (page) => current && page && (setMoves(page.data), setProblem(null)),
      (error) => current && setProblem(problemOf(error, serverNow())),
    );
    return () => (current = false);
  }, [unfolded, video.state]);
  return html`<details class="history" onToggle=${(event) => setUnfolded(event.currentTarget.open)}>
    <summary>${FINAL.has(video.state) ? 'What happened' : 'What has happened so far'}</summary>
    <p><a href="status#${video.id}">Its way through the server, on a time axis</a></p>
    <ol>
      ${moves.map((move, n) => html`<${Move} key=${n} ...${move} />`)}
    </ol>
    <${ProblemText} problem=${problem} />
  </details>`;
}

function Move({ at, state, note }) {
  return html`<li>
    <time>${timeOfDay(at)}</time> <b>${state}</b> <span class="quiet">${note}</span>
  </li>`;
}
