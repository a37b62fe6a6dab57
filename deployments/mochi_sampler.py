"""Stage 2: embeddings and noise to latents, step by step, many samples at once."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from ray import serve
from safetensors.torch import load, save
from torch import Tensor

from deployments.admission import Admission
from deployments.checkpoints import Checkpoints
from deployments.connections import Connections, connect
from deployments.denoise import (
    RowState,
    Shape,
    denoise_step,
    initial_noise,
    latent_shape,
    rope_tables,
    start_row,
)
from deployments.device import describe_device, replica_device, set_threads
from deployments.draining import watch_sigterm
from deployments.errors import StoppedError, TransientError, WorkerError
from deployments.memory_measure import memory_budget, memory_profile
from deployments.memory_profile import Resident as MemoryResident
from deployments.messages import (
    Checkpointed,
    Event,
    Parked,
    ReplicaInfo,
    Stage,
    StageTask,
    VideoSpec,
    latents_key,
    prompt_embeds_key,
)
from deployments.mochi_block import Rope
from deployments.mochi_model import DtypeName, check_scheduler, load_transformer
from deployments.model_store import model_fingerprint, model_folder
from deployments.preview import PreviewMap, find_preview, predicted_clean, preview_image
from deployments.running_task import RunningTask, logger, wait_for
from deployments.sample_state import SampleState
from deployments.settings import WorkerSettings
from deployments.stage_worker import StageWorker
from deployments.step_loop import Resident, StepLoop

PARTS = ("transformer",)
LATENTS_FORMAT = "mochi-serve-latents-1"
LOOK_EVERY_S = 0.2


@serve.deployment
class MochiSampler:
    """A replica of the sampler: one transformer, one thread that steps all samples in residence."""

    def __init__(self, settings: WorkerSettings, connections: Connections | None = None) -> None:
        to = connections or connect(settings)
        if connections is None:
            watch_sigterm()
        self._device = replica_device()
        set_threads(settings.torch_threads)
        self._model = settings.model
        self._sampling = settings.sampling
        self._folder = model_folder(self._model, PARTS, to.open_bucket)
        check_scheduler(self._folder)
        self._transformer = load_transformer(self._folder, self._model.dtype, self._device)
        self._revision = model_fingerprint(self._folder, PARTS)
        self._checkpoints = Checkpoints(to.store, self._revision, self._model.dtype)
        self._rope: dict[Shape, Rope] = {}
        self._preview: PreviewMap | None = None
        self._store = to.store
        profile = memory_profile(self._transformer, self._model, self._revision)
        self._admission = Admission(profile, memory_budget(self._device))
        self._loop = StepLoop(self._step, settings.sampling.max_batch_tokens, self._warm_up)
        info = ReplicaInfo(
            to.replica,
            Stage.SAMPLING,
            settings.slots,
            describe_device(self._device),
            self._model.name,
            self._admission.max_tokens,
        )
        self._worker = StageWorker(info, to.link)

    async def run(self, task: StageTask) -> None:
        """Do one task; everything is told to the registry by reports."""
        await self._worker.run(task, self._sample)

    async def check_health(self) -> None:
        self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):
            self._worker.close()
            self._loop.close()

    async def _sample(self, running: RunningTask) -> Event | None:
        """From the newest checkpoint or from noise to the final latents, or to where it was told to let go."""
        state = await self._starting_state(running.task)
        self._preview = self._preview or await find_preview(self._folder, self._store, self._revision)
        running.clock.lap("load")
        rows = 2 if state.spec.guidance_scale > 1 else 1
        try:
            if not await self._admission.enter(running, MemoryResident(latent_shape(state.spec), rows)):
                return Parked(state.step, running.yielding or "")
            row = await self._denoise(running, state)
        finally:
            self._admission.leave(running)
        running.clock.lap("denoise")
        if not row.done:
            await self._save(running, row, state)
            running.clock.lap("store")
            return Parked(row.step, running.yielding or "")
        await self._store_latents(running.task, row)
        running.clock.lap("store")
        return None

    async def _denoise(self, running: RunningTask, state: SampleState) -> RowState:
        """The row with which the sample left the denoising thread, done or not."""
        resident = self._loop.enter(
            running,
            prepare=lambda: self._row(state),
            after_step=lambda row: running.progress(row.step, row.num_steps),
            exact=state.spec.exact,
        )
        left = asyncio.Event()
        beside = asyncio.create_task(self._accompany(running, resident, state, left))
        try:
            return await resident.left
        except StoppedError:
            beside.cancel()  # nobody needs the checkpoint that may be on its way: the slot is free at once
            raise
        except (torch.OutOfMemoryError, MemoryError):
            await self._try_to_save(running, resident.row, state)
            raise
        finally:
            left.set()
            await asyncio.wait([beside])

    async def _starting_state(self, task: StageTask) -> SampleState:
        # A later attempt looks in any case: the word of the last checkpoint may not have reached the registry.
        may_have_state = task.checkpoint_step > 0 or task.attempt > 1
        if may_have_state and (kept := await self._checkpoints.newest(task.job_id, task.spec)):
            return kept
        embeds = load(await self._store.get(prompt_embeds_key(task.job_id)))
        return SampleState(task.spec, self._revision, self._model.dtype, 0, initial_noise(task.spec), embeds)

    async def _accompany(
        self, running: RunningTask, resident: Resident, state: SampleState, left: asyncio.Event
    ) -> None:
        """Beside the denoising thread: a checkpoint and a preview now and then."""
        saved_at, shown = time.monotonic(), state.step
        while not left.is_set():
            await wait_for(left, min(LOOK_EVERY_S, self._sampling.checkpoint_s))
            if time.monotonic() - saved_at >= self._sampling.checkpoint_s and not left.is_set():
                saved_at = time.monotonic()
                await self._try_to_save(running, resident.row, state)
            shown = await self._show(running, resident, shown)

    async def _show(self, running: RunningTask, resident: Resident, shown: int) -> int:
        """Attach a preview if enough steps were done since the last; the step of the last preview."""
        before, row, every = resident.before, resident.row, self._sampling.preview_every
        if self._preview is None or not every or before is None or row is None or row.step - shown < every:
            return shown
        running.show(await asyncio.to_thread(picture, self._preview, before, row))
        return row.step

    async def _try_to_save(self, running: RunningTask, row: RowState | None, state: SampleState) -> None:
        """A checkpoint that cannot be written now costs nothing yet; the next one may."""
        try:
            await self._save(running, row, state)
        except WorkerError as error:
            logger.warning("no checkpoint this time: %s", error.message)

    async def _save(self, running: RunningTask, row: RowState | None, state: SampleState) -> None:
        """Write a checkpoint of the row if it is ahead of the last one, and tell the registry."""
        known = max(state.step, running.checkpointed)
        if row is None or row.step <= known or running.stopped:
            return
        await self._checkpoints.save(running.task.job_id, replace(state, step=row.step, latents=row.latents))
        running.checkpointed = row.step
        await self._worker.report_now(running, Checkpointed(row.step))

    async def _store_latents(self, task: StageTask, row: RowState) -> None:
        latents = check_finite(await asyncio.to_thread(row.latents.cpu))
        data = pack_latents(latents, self._model.name, self._model.dtype, task.spec, self._revision)
        await self._store.put(latents_key(task.job_id), data, "application/octet-stream")

    def _step(self, rows: Sequence[RowState]) -> list[RowState]:
        """One step of a batch; returns when the device has done it, so that progress is true and a stop is prompt."""
        begun = time.perf_counter()
        stepped = denoise_step(self._transformer, rows)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        time.sleep(max(0.0, self._sampling.min_step_s - (time.perf_counter() - begun)))
        return stepped

    def _row(self, state: SampleState) -> RowState:
        shape = latent_shape(state.spec)
        if shape not in self._rope:
            in_use = {tuple(row.latents.shape) for row in self._loop.rows()}
            self._rope = {kept: rope for kept, rope in self._rope.items() if kept in in_use}
            self._rope[shape] = rope_tables(self._transformer, shape)
        row = start_row(self._transformer, state.spec, state.embeds, self._rope[shape])
        return replace(row, latents=state.latents.to(self._device), step=state.step)

    def _warm_up(self) -> None:
        """One guided step of the smallest video."""
        model, config = self._model, self._transformer.config
        spec = VideoSpec("", "", model.width.minimum, model.height.minimum, model.num_frames.minimum, 1, 2, 2.0, seed=0)
        zeros = torch.zeros(model.max_sequence_length, config.text_embed_dim)
        mask = torch.arange(model.max_sequence_length) < 1
        embeds = {"prompt_embeds": zeros, "prompt_mask": mask, "negative_embeds": zeros, "negative_mask": mask}
        rope = rope_tables(self._transformer, latent_shape(spec))
        denoise_step(self._transformer, [start_row(self._transformer, spec, embeds, rope)])


def picture(preview: PreviewMap, before: RowState, after: RowState) -> bytes:
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
