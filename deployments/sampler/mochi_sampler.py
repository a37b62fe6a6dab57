"""Stage 2: embeddings and noise to latents, step by step, many samples at once."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from ray import serve
from torch import Tensor

from deployments.clip import cfg_rows
from deployments.errors import TransientError
from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key
from deployments.messages import Event, Parked, Stage
from deployments.mochi.denoise import Sample, initial_noise
from deployments.mochi.loading import load_transformer
from deployments.replica.connections import Connections
from deployments.replica.running_task import RunningTask, TaskStore, Timing
from deployments.replica.serve_private import watch_sigterm
from deployments.replica.stage_replica import StageReplica
from deployments.sampler.denoiser import Denoiser
from deployments.sampler.memory_gate import MemoryGate
from deployments.sampler.memory_measure import memory_budget, memory_profile
from deployments.sampler.memory_profile import SampleFootprint
from deployments.sampler.recorder import RenderPreview, SampleRecorder, is_ahead_of_storage, render_preview
from deployments.sampler.state import SampleState, pack
from deployments.sampler.step_loop import Step, StepLoop
from deployments.settings import WorkerSettings
from deployments.storage import work_files
from deployments.storage.model_store import model_fingerprint
from deployments.storage.work_files import CONTENT_TYPE, WorkLabel, read_input

MODEL_PARTS = ("transformer",)


@dataclass(frozen=True, slots=True)
class SamplerParts:
    """What a sampler works with."""

    revision: str  # of the transformer, see `model_store.model_fingerprint`
    prepare: Callable[[SampleState, Sequence[Sample]], Sample]  # see `Denoiser.prepare`
    step: Step
    warm_up: Callable[[], object]
    memory: MemoryGate
    render_preview: RenderPreview = render_preview
    now_ns: Callable[[], int] = time.perf_counter_ns  # a monotonic clock, by which the device's time is charged


LoadParts = Callable[[WorkerSettings, Path, torch.device], SamplerParts]


def load_parts(settings: WorkerSettings, model_folder: Path, device: torch.device) -> SamplerParts:
    """Load the transformer and measure the memory that it leaves.

    Raises:
        PermanentError: `model_incomplete`, `model_mismatch`, as `load_transformer` does.
    """
    transformer = load_transformer(model_folder, settings.model.dtype, device)
    revision = model_fingerprint(model_folder, MODEL_PARTS, settings.model.dtype)
    profile = memory_profile(transformer, settings.model, revision)
    denoiser = Denoiser(transformer, settings.sampling.min_step_s)
    return SamplerParts(
        revision=revision,
        prepare=denoiser.prepare,
        step=denoiser.step,
        warm_up=partial(denoiser.warm_up, settings.model),
        memory=MemoryGate(profile, memory_budget(device)),
    )


@serve.deployment
class MochiSampler(StageReplica):
    """A replica of the sampler: one transformer, and one thread that steps all its samples."""

    stage = Stage.SAMPLING
    model_parts = MODEL_PARTS

    recorder: SampleRecorder

    def __init__(
        self,
        settings: WorkerSettings,
        connections: Connections | None = None,
        timing: Timing = Timing(),
        load_parts: LoadParts = load_parts,
    ) -> None:
        if connections is None:
            watch_sigterm()
        super().__init__(settings, connections, timing)
        self._model = settings.model
        self._embeds_revision = self.work_revision(Stage.ENCODING)  # of what it takes
        self._revision = self.work_revision(Stage.SAMPLING)  # of what it leaves
        self._parts = load_parts(settings, self._folder, self._device)
        self._loop = StepLoop(
            self._parts.step,
            max_tokens=settings.sampling.max_batch_tokens,
            warm_up=self._parts.warm_up,
            now_ns=self._parts.now_ns,
        )
        self.start_worker(settings.slots, self._parts.memory.max_tokens)
        self.recorder = SampleRecorder(
            model_folder=self._folder,
            store=self._store,
            transformer=self._parts.revision,
            revision=self._revision,
            dtype=self._model.dtype,
            sampling=settings.sampling,
            report=self.worker.report_now,
            render=self._parts.render_preview,
        )

    def __del__(self) -> None:
        super().__del__()
        if hasattr(self, "_loop"):
            self._loop.close()

    async def work(self, running: RunningTask) -> Event | None:
        """Sample from the newest checkpoint or from noise until the latents are final, or the sample is parked."""
        if running.park_reason is not None:
            return parked(running, running.task.checkpoint_step)
        start = await self._load_state(running)
        running.clock.lap("load")
        sample = await self._denoise_in_memory(running, start)
        running.clock.lap("denoise")
        if sample is None:
            return parked(running, start.step)
        if sample.done:
            await self._store_latents(running, sample)
        else:
            await self._store_state(running, sample, start)
        running.clock.lap("store")
        return None if sample.done else parked(running, sample.step)

    async def _load_state(self, running: RunningTask) -> SampleState:
        task = running.task
        # A later attempt looks in any case: the report of the last checkpoint may not have reached the registry.
        may_have_checkpoint = task.checkpoint_step > 0 or task.attempt > 1
        if may_have_checkpoint:
            newest = await self.recorder.checkpoints(running).newest(task.job_id, task.spec)
            if newest is not None:
                return newest
        dtype = self._settings.dtypes["text_encoder"]
        label = WorkLabel(prompt_embeds_key(task.job_id), self._embeds_revision, dtype, task.spec)
        _, embeds = await read_input(self._store, label)
        noise = await asyncio.to_thread(initial_noise, task.spec)
        return SampleState(task.spec, self._revision, self._model.dtype, 0, noise, embeds)

    async def _denoise_in_memory(self, running: RunningTask, start: SampleState) -> Sample | None:
        """As `_denoise`, once there is memory for the sample; None if it is to be parked before."""
        footprint = SampleFootprint(start.spec.clip.latents, cfg_rows(start.spec.guidance_scale))
        memory = self._parts.memory
        try:
            reserved = await memory.reserve(running, footprint)
            if not reserved or running.park_reason is not None:
                return None
            return await self._denoise(running, start)
        finally:
            memory.release(running)

    async def _denoise(self, running: RunningTask, start: SampleState) -> Sample:
        """The sample as it left the loop, done or not."""
        entry = self._loop.add(
            running,
            prepare=lambda: self._parts.prepare(start, self._loop.samples),
            after_step=lambda sample: running.progress(sample.step, sample.num_steps),
            exact=start.spec.exact,
        )
        recording = asyncio.create_task(self.recorder.record(running, entry, start))
        try:
            return await entry.result
        except (torch.OutOfMemoryError, MemoryError):
            await _cancel(recording)
            await self.recorder.save_checkpoint(running, entry.sample, start)
            raise
        finally:
            # Nobody waits for a checkpoint or a preview that is under way: the sample is ahead of it.
            await _cancel(recording)

    async def _store_state(self, running: RunningTask, sample: Sample, start: SampleState) -> None:
        """Write the state with which the sample is parked, unless it is in storage.

        Older ones are left to the job's next checkpoint or its end: the slot does not wait for their deletion, and
        once the state is reported the job is another replica's, whose checkpoints nobody else may touch.
        """
        if not is_ahead_of_storage(running, sample, start):
            return
        key = checkpoint_key(running.task.job_id, sample.step)
        data = await asyncio.to_thread(pack, key, replace(start, step=sample.step, latents=sample.latents))
        await TaskStore(self._store, running).put_result(key, data, CONTENT_TYPE)

    async def _store_latents(self, running: RunningTask, sample: Sample) -> None:
        task = running.task
        label = WorkLabel(latents_key(task.job_id), self._revision, self._model.dtype, task.spec)

        def packed() -> bytes:
            latents = check_finite(sample.latents.cpu())
            return work_files.pack(label, {"latents": latents.float()}, transformer=self._parts.revision)

        data = await asyncio.to_thread(packed)
        await TaskStore(self._store, running).put_result(label.key, data, CONTENT_TYPE)


def parked(running: RunningTask, step: int) -> Parked:
    """The end of a task whose state after `step` steps is in storage."""
    return Parked(step, running.park_reason or "", running.device_s, running.passes)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def check_finite(latents: Tensor) -> Tensor:
    """Return the latents as they are.

    Raises:
        TransientError: `non_finite_latents`: another replica may do better, a faulty GPU does this.
    """
    if not bool(torch.isfinite(latents).all()):
        raise TransientError("non_finite_latents", "sampling gave NaN or infinity; the job is tried again")
    return latents
