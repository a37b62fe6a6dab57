// What openai_program.py does, by the `openai` package for Node.
import { writeFile } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const client = new OpenAI({ baseURL: `${process.env.MOCHI_SERVE_URL}/v1`, apiKey: "none" });
const videos = client.videos;
const UNKNOWN = "video_" + "0".repeat(32);

async function poll(id) {
  let video = await videos.retrieve(id);
  while (video.status === "queued" || video.status === "in_progress") {
    await setTimeout(200);
    video = await videos.retrieve(id);
  }
  return video;
}

async function save(id, name, query) {
  const response = await videos.downloadContent(id, query);
  await writeFile(name, Buffer.from(await response.arrayBuffer()));
}

const created = await videos.create({
  model: "sora-2", prompt: "a red circle moving right", seconds: "4", size: "1280x720",
});
const completed = await poll(created.id);
await save(created.id, "created.mp4");
await save(created.id, "thumbnail.webp", { variant: "thumbnail" });
const own = await poll((await videos.create({
  prompt: "a blue square moving left", seed: 7, size: "64x64", extra_params: { num_inference_steps: 4, fps: 12 },
})).id);
await save(own.id, "own.mp4");
const remix = await poll((await videos.remix(created.id, { prompt: "a green star moving up" })).id);
await save(remix.id, "remix.mp4");
const retrieved = await videos.retrieve(remix.id);
const listed = [];
for await (const video of videos.list({ limit: 2 })) {
  if (listed.push(video.id) === 3) break;
}
const deleted = await videos.delete(remix.id);
const errors = [];
for (const call of [
  () => videos.retrieve(remix.id),
  () => videos.downloadContent(UNKNOWN),
  () => videos.create({ prompt: "a red circle", num_frames: 8 }),
  () => videos.create({ prompt: "a red circle", num_inference_step: 8 }),
  () => videos.create({ prompt: "a red circle", input_reference: new File(["png"], "a.png", { type: "image/png" }) }),
  () => videos.create({ prompt: "a red circle", model: "gpt-5" }),
]) {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    errors.push([error.constructor.name, error.param, error.code]);
  }
}
const told = { version: VERSION, created, completed, own, remix, retrieved, listed, deleted, errors };
process.stdout.write(JSON.stringify(told));
