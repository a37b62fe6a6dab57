"""Stage 2: embeddings and noise to latents, step by step, many samples at once."""

import asyncio
import json
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, replace

import torch
from ray import serve
from safetensors.torch import load, save
from torch import Tensor

from deployments.clip import LatentShape, cfg_rows
from deployments.errors import StoppedError, TransientError, WorkerError
from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key
from deployments.messages import Checkpointed, Event, Parked, Stage, VideoSpec
from deployments.mochi.block import Rope
from deployments.mochi.denoise import Sample, denoise_step, initial_noise, rope_tables, start_sample
from deployments.mochi.loading import DtypeName, check_scheduler, load_transformer
from deployments.mochi.preview import PreviewMap, find_preview, predicted_clean, preview_image
from deployments.replica.connections import Connections
from deployments.replica.running_task import RunningTask, TaskStore, Timing, logger
from deployments.replica.serve_private import watch_sigterm
from deployments.replica.stage_replica import StageReplica
from deployments.sampler.memory_gate import MemoryGate
from deployments.sampler.memory_measure import memory_budget, memory_profile
from deployments.sampler.memory_profile import SampleFootprint
from deployments.sampler.state import Checkpoints, SampleState, pack
from deployments.sampler.step_loop import LoopEntry, StepLoop
from deployments.settings import WorkerSettings
from deployments.storage.model_store import model_fingerprint

LATENTS_FORMAT = "mochi-serve-latents-1"
LOOK_EVERY_S = 0.2
OCTETS = "application/octet-stream"


@serve.deployment
class MochiSampler(StageReplica):
    """A replica of the sampler: one transformer, one thread that steps all samples in residence."""

    stage = Stage.SAMPLING
    model_parts = ("transformer",)

    def __init__(
        self, settings: WorkerSettings, connections: Connections | None = None, timing: Timing = Timing()
    ) -> None:
        if connections is None:
            watch_sigterm()
        super().__init__(settings, connections, timing)
        self._model = settings.model
        self._sampling = settings.sampling
        check_scheduler(self._folder)
        self._transformer = load_transformer(self._folder, self._model.dtype, self._device)
        self._revision = model_fingerprint(self._folder, self.model_parts)
        self._rope: dict[LatentShape, Rope] = {}
        self._preview: PreviewMap | None = None
        self._unforeseen = 0
        profile = memory_profile(self._transformer, self._model, self._revision)
        self._admission = MemoryGate(profile, memory_budget(self._device))
        self._loop = StepLoop(self._step, settings.sampling.max_batch_tokens, self._warm_up)
        self.start_worker(settings.slots, self._admission.max_tokens)

    def __del__(self) -> None:
        super().__del__()
        if hasattr(self, "_loop"):
            self._loop.close()

    async def work(self, running: RunningTask) -> Event | None:
        """From the newest checkpoint or from noise to the final latents, or to where it was told to let go."""
        if running.park_reason is not None:
            return parked(running, running.task.checkpoint_step)
        state = await self._starting_state(running)
        running.clock.lap("load")
        row = await self._denoise_admitted(running, state)
        running.clock.lap("denoise")
        if row is None:
            return parked(running, state.step)
        if row.done:
            await self._store_latents(running, row)
        else:
            await self._store_state(running, row, state)
        running.clock.lap("store")
        return None if row.done else parked(running, row.step)

    async def _denoise_admitted(self, running: RunningTask, state: SampleState) -> Sample | None:
        """As `_denoise`, once there is memory for the sample; None if it was told to let go before."""
        sample = SampleFootprint(state.spec.clip.latents, cfg_rows(state.spec.guidance_scale))
        try:
            admitted = await self._admission.enter(running, sample)
            if not admitted or running.park_reason is not None:
                return None
            return await self._denoise(running, state)
        finally:
            self._admission.leave(running)

    async def _denoise(self, running: RunningTask, state: SampleState) -> Sample:
        """The row with which the sample left the denoising thread, done or not."""
        resident = self._loop.enter(
            running,
            prepare=lambda: self._row(state),
            after_step=lambda row: running.progress(row.step, row.num_steps),
            exact=state.spec.exact,
        )
        beside = asyncio.create_task(self._accompany(running, resident, state))
        try:
            return await resident.left
        except (torch.OutOfMemoryError, MemoryError):
            await _end(beside)
            await self._tolerate("checkpoint", self._save(running, resident.row, state))
            raise
        finally:
            await _end(beside)

    async def _starting_state(self, running: RunningTask) -> SampleState:
        task = running.task
        # A later attempt looks in any case: the word of the last checkpoint may not have reached the registry.
        may_have_state = task.checkpoint_step > 0 or task.attempt > 1
        if may_have_state and (kept := await self._checkpoints(running).newest(task.job_id, task.spec)):
            return kept
        embeds = load(await self._store.get(prompt_embeds_key(task.job_id)))
        noise = await asyncio.to_thread(initial_noise, task.spec)
        return SampleState(task.spec, self._revision, self._model.dtype, 0, noise, embeds)

    async def _accompany(self, running: RunningTask, resident: LoopEntry, state: SampleState) -> None:
        """Beside the denoising thread: a checkpoint and a preview now and then, until it is cancelled."""
        saved_at, shown, every = time.monotonic(), state.step, self._sampling.preview_every
        if every and self._preview is None:
            await self._tolerate("preview map", self._find_preview())
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self._sampling.checkpoint_s))
            if time.monotonic() - saved_at >= self._sampling.checkpoint_s:
                saved_at = time.monotonic()
                await self._tolerate("checkpoint", self._save(running, resident.row, state))
            before, row = resident.before, resident.row
            if every and before is not None and row is not None and row.step - shown >= every:
                shown = row.step
                await self._tolerate("preview", self._show(running, before, row))

    async def _tolerate(self, what: str, work: Awaitable[None]) -> None:
        """What goes on beside the sampling may fail: that costs nothing yet, and the next one may succeed."""
        try:
            await work
        except StoppedError:
            return
        except WorkerError as error:
            logger.warning("no %s this time: %s", what, error.message)
        except Exception:
            self._unforeseen += 1
            logger.exception("no %s this time; unforeseen error %d beside this sampler", what, self._unforeseen)

    async def _find_preview(self) -> None:
        self._preview = await find_preview(self._folder, self._store, self._revision)

    async def _show(self, running: RunningTask, before: Sample, row: Sample) -> None:
        """Attach a preview to the progress, if the model has a map for it."""
        if self._preview is not None:
            running.attach_preview(await asyncio.to_thread(picture, self._preview, before, row))

    def _checkpoints(self, running: RunningTask) -> Checkpoints:
        return Checkpoints(TaskStore(self._store, running), self._revision, self._model.dtype)

    async def _save(self, running: RunningTask, row: Sample | None, state: SampleState) -> None:
        """Write a checkpoint of the row if it is ahead of the last one, and tell the registry."""
        if row is None or not _is_news(running, row, state):
            return
        await self._checkpoints(running).save(running.task.job_id, replace(state, step=row.step, latents=row.latents))
        running.checkpoint_step = row.step
        await self.worker.report_now(running, Checkpointed(row.step))

    async def _store_state(self, running: RunningTask, row: Sample, state: SampleState) -> None:
        """Write the state that the sample leaves with, unless it is in storage.

        Older ones are left to the job's next checkpoint or its end: the slot does not wait for their deletion, and
        once the state is told the job is another replica's, whose checkpoints nobody else may touch.
        """
        if not _is_news(running, row, state):
            return
        data = await asyncio.to_thread(pack, replace(state, step=row.step, latents=row.latents))
        store = TaskStore(self._store, running)
        await store.put_result(checkpoint_key(running.task.job_id, row.step), data, OCTETS)

    async def _store_latents(self, running: RunningTask, row: Sample) -> None:
        task, model, store = running.task, self._model, TaskStore(self._store, running)

        def packed() -> bytes:
            return pack_latents(check_finite(row.latents.cpu()), model.name, model.dtype, task.spec, self._revision)

        data = await asyncio.to_thread(packed)
        await store.put_result(latents_key(task.job_id), data, OCTETS)

    def _step(self, rows: Sequence[Sample]) -> list[Sample]:
        """One step of a batch; returns when the device has done it, so that progress is true and a stop is prompt."""
        begun = time.perf_counter()
        stepped = denoise_step(self._transformer, rows)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        time.sleep(max(0.0, self._sampling.min_step_s - (time.perf_counter() - begun)))
        return stepped

    def _row(self, state: SampleState) -> Sample:
        shape = state.spec.clip.latents
        if shape not in self._rope:
            in_use = {tuple(row.latents.shape) for row in self._loop.rows()}
            self._rope = {kept: rope for kept, rope in self._rope.items() if kept in in_use}
            self._rope[shape] = rope_tables(self._transformer, shape)
        row = start_sample(self._transformer, state.spec, state.embeds, self._rope[shape])
        return replace(row, latents=state.latents.to(self._device), step=state.step)

    def _warm_up(self) -> None:
        """One guided step of the smallest video."""
        model, config = self._model, self._transformer.config
        spec = VideoSpec("", "", model.width.minimum, model.height.minimum, model.num_frames.minimum, 1, 2, 2.0, seed=0)
        zeros = torch.zeros(model.max_sequence_length, config.text_embed_dim)
        mask = torch.arange(model.max_sequence_length) < 1
        embeds = {"prompt_embeds": zeros, "prompt_mask": mask, "negative_embeds": zeros, "negative_mask": mask}
        rope = rope_tables(self._transformer, spec.clip.latents)
        denoise_step(self._transformer, [start_sample(self._transformer, spec, embeds, rope)])


def parked(running: RunningTask, step: int) -> Parked:
    """What is told of a task that lets go with its state in storage after `step` steps."""
    return Parked(step, running.park_reason or "", running.device_s)


def _is_news(running: RunningTask, row: Sample, state: SampleState) -> bool:
    """Whether the row is ahead of what is in storage; `state` is what the sample came with."""
    return row.step > max(state.step, running.checkpoint_step)


async def _end(beside: asyncio.Task[None]) -> None:
    """Nobody waits for a checkpoint or a preview that is under way: the sample that left is ahead of it."""
    beside.cancel()
    await asyncio.wait([beside])


def picture(preview: PreviewMap, before: Sample, after: Sample) -> bytes:
    """A WebP of where the sample is heading, its middle latent frame; `before` and `after` are one step apart."""
    middle = slice(after.latents.shape[1] // 2, after.latents.shape[1] // 2 + 1)
    sigmas = after.sigmas.cpu()
    ahead = predicted_clean(
        before.latents[:, middle].cpu(), after.latents[:, middle].cpu(), sigmas[before.step], sigmas[after.step]
    )
    return preview_image(preview, ahead)


def check_finite(latents: Tensor) -> Tensor:
    """Return the latents as they are.

    Raises:
        TransientError: `non_finite_latents`: another replica may do better, a faulty GPU does this.
    """
    if not bool(torch.isfinite(latents).all()):
        raise TransientError("non_finite_latents", "sampling gave NaN or infinity; the job is tried again")
    return latents


def pack_latents(latents: Tensor, model: str, dtype: DtypeName, spec: VideoSpec, revision: str) -> bytes:
    """Safetensors with `latents` fp32 and, in its header, what they were made of."""
    made_of = {
        "format": LATENTS_FORMAT,
        "model": model,
        "revision": revision,
        "dtype": dtype,
        "spec": json.dumps(asdict(spec)),
    }
    return save({"latents": latents.float().contiguous()}, metadata=made_of)
