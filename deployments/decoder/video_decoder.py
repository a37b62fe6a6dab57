"""Stage 3: latents to an mp4, a poster and a spritesheet; once for a model, the map its previews are made with."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from ray import serve
from torch import Tensor

from deployments.clip import ClipShape
from deployments.decoder.codec import choose_codec
from deployments.decoder.hand_over import hand_over
from deployments.decoder.host_copies import host_copies
from deployments.decoder.mp4_encoder import Codec, Mp4Writer, poster
from deployments.decoder.spritesheet import Spritesheet
from deployments.keys import latents_key, video_key
from deployments.messages import Stage, StageTask
from deployments.mochi.preview import PreviewFit, keep_preview
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise, to_uint8
from deployments.mochi.weights.loading import load_vae
from deployments.replica.connections import Connections
from deployments.replica.running_task import RunningTask, TaskStore, Timing
from deployments.replica.stage_replica import StageReplica
from deployments.settings import WorkerSettings
from deployments.storage.scratch import scratch_folder
from deployments.storage.work_files import WorkLabel, check_finite, read_input, refused

OpenWriter = Callable[[Path, int, int, int, Codec], Mp4Writer]
"""Begins an mp4, by path, width, height, frames a second and codec."""


@dataclass(frozen=True, slots=True)
class Stills:
    """The pictures of a video, WebP files."""

    poster: bytes  # the middle frame
    spritesheet: bytes


@serve.deployment
class VideoDecoder(StageReplica):
    """A replica of the decoder: one VAE, one job at a time; one thread decodes, one writes, ffmpeg beside them."""

    stage = Stage.DECODING
    model_parts = ("vae",)

    def __init__(
        self,
        settings: WorkerSettings,
        connections: Connections | None = None,
        timing: Timing = Timing(),
        open_writer: OpenWriter = Mp4Writer,
    ) -> None:
        super().__init__(settings, connections, timing)
        model = settings.model
        self._open_writer = open_writer
        self._revision = self.work_revision(Stage.SAMPLING)  # of the latents that it takes
        self._vae = load_vae(self._folder, model.dtype, self._device)
        self._decoder = StreamingDecoder(self._vae, model.frame_drop)
        self.end_phase("weights")
        self._revisions_with_map: set[str] = set()  # of transformers whose preview map is in storage
        self._finished_fit: tuple[str, PreviewFit] | None = None  # of the last video, and its transformer's revision
        smallest = ClipShape(model.width.minimum, model.height.minimum, num_frames=7)
        self._codec = choose_codec(settings.encoder, self._device, smallest.width, smallest.height)
        self.start_worker(slots=1)
        self.worker.warm_up(lambda: list(self._decoder.decode(self._to_vae(torch.zeros(smallest.latents)))))
        self.end_phase("warm_up")

    async def run(self, task: StageTask) -> None:
        await super().run(task)
        # After the job's end was reported: it waits for no preview map and does not fail with one.
        await self._store_preview_map()

    async def work(self, running: RunningTask) -> None:
        """Decode the latents of the task and store the video and its pictures."""
        job_id = running.task.job_id
        store = TaskStore(self._store, running)
        header, latents = await self._read_latents(running)
        revision = header.get("transformer", "")
        fit = PreviewFit() if revision and revision not in self._revisions_with_map else None
        running.clock.lap("load")
        with scratch_folder("mochi-video-") as folder:
            path = folder / "video.mp4"
            stills = await running.in_thread(self._write_video, running, latents, path, fit)
            await store.put_result(video_key(job_id, "thumbnail"), stills.poster, "image/webp")
            await store.put_result(video_key(job_id, "spritesheet"), stills.spritesheet, "image/webp")
            await store.put_result_file(video_key(job_id), path, "video/mp4")
        running.clock.lap("store")
        if fit is not None:
            self._finished_fit = revision, fit

    async def _read_latents(self, running: RunningTask) -> tuple[dict[str, str], Tensor]:
        """The latents of the task, with their header. Raises InputUnusableError: they must be made again."""
        spec = running.task.video
        dtype = self._settings.dtypes["transformer"]
        label = WorkLabel(latents_key(running.task.job_id), self._revision, dtype, spec)
        header, tensors = await read_input(TaskStore(self._store, running), label)
        latents = tensors["latents"]
        if tuple(latents.shape) != spec.clip.latents:
            raise refused(label.key, f"its latents are {tuple(latents.shape)}; the job needs {spec.clip.latents}")
        check_finite(label.key, latents)
        return header, latents

    async def _store_preview_map(self) -> None:
        if self._finished_fit is None:
            return
        revision, fit = self._finished_fit
        self._finished_fit = None
        if await keep_preview(self._folder, self._store, revision, fit):
            self._revisions_with_map.add(revision)

    def _write_video(self, running: RunningTask, latents: Tensor, path: Path, fit: PreviewFit | None) -> Stills:
        """Write the mp4; returns the pictures."""
        spec = running.task.video
        writer = self._open_writer(path, spec.width, spec.height, spec.fps, self._codec)
        try:
            stills = self._decode_into(writer, running, latents, fit)
            writer.finish()
        except BaseException:
            writer.kill()
            raise
        running.clock.lap("mp4")
        return stills

    def _decode_into(self, writer: Mp4Writer, running: RunningTask, latents: Tensor, fit: PreviewFit | None) -> Stills:
        """Decode piece by piece; each goes into the mp4, the pictures and the preview map's fit beside the decoding."""
        spec = running.task.video
        sprites = Spritesheet(spec.num_frames, spec.width, spec.height)
        middle_frame = b""
        done = 0

        def take(numbered: tuple[int, Tensor]) -> None:
            nonlocal middle_frame, done
            index, frames = numbered
            writer.write(frames)
            sprites.add(frames)
            middle = spec.num_frames // 2 - done
            if 0 <= middle < len(frames):
                middle_frame = poster(frames[middle])
            if fit is not None:
                fit.add(latents[:, index], frames)
            done += len(frames)
            running.progress(done, spec.num_frames)

        running.progress(done, spec.num_frames)
        # Closed also when the taking failed: the next video must not begin before this one has let go of the decoder.
        with closing(self._frames(running, latents)) as pieces:
            hand_over(enumerate(pieces), take)
        return Stills(middle_frame, sprites.webp())

    def _frames(self, running: RunningTask, latents: Tensor) -> Generator[Tensor]:
        """The frames of each latent frame, [t, H, W, 3] uint8 on the CPU."""
        pieces = self._decoder.decode(self._to_vae(latents))
        for frames in host_copies(to_uint8(piece) for piece in pieces):
            running.clock.lap("decode")
            running.raise_if_stopped()
            yield frames
            running.clock.lap("mp4")  # the decoding waited for it

    def _to_vae(self, latents: Tensor) -> Tensor:
        return denormalise(self._vae, latents.to(self._device)).to(self._vae.dtype)
