"""Stage 2: embeddings and noise to latents, step by step, many samples at once."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from ray import serve

from deployments.errors import StoppedError
from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key
from deployments.messages import Event, LoraChoice, Parked, Stage
from deployments.metrics import names
from deployments.metrics.names import StartPhase
from deployments.metrics.recorder import RECORDER
from deployments.mochi.block import RunBlock, run_block
from deployments.mochi.denoise import Sample, initial_noise
from deployments.mochi.fp8_attention import check_fp8_attention
from deployments.mochi.loras import Loras
from deployments.mochi.weights.loading import load_transformer
from deployments.replica.connections import Connections
from deployments.replica.running_task import RunningTask, TaskStore, Timing
from deployments.replica.serve_private import watch_sigterm
from deployments.replica.stage_replica import StageReplica
from deployments.sampler.denoiser import Denoiser, compiled_block
from deployments.sampler.memory_gate import MemoryGate
from deployments.sampler.memory_measure import Form, measure, memory_budget, memory_profile
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint, highest
from deployments.sampler.recorder import RenderPreview, SampleRecorder, is_ahead_of_storage, render_preview
from deployments.sampler.state import SampleState, counting_checkpoint, pack, sample_revision
from deployments.sampler.step_loop import Snapshot, Step, StepLoop
from deployments.settings import WorkerSettings
from deployments.storage import work_files
from deployments.storage.models.hub import StorePins
from deployments.storage.models.lora_files import LoraFiles, lora_files
from deployments.storage.models.store import model_fingerprint
from deployments.storage.work_files import CONTENT_TYPE, WorkLabel, read_input

MODEL_PARTS = ("transformer",)


@dataclass(frozen=True, slots=True)
class SamplerParts:
    """What a sampler works with."""

    revision: str  # of the transformer, see `models.store.model_fingerprint`
    prepare: Callable[[SampleState, Sequence[Sample]], Sample]  # see `Denoiser.prepare`
    step: Step
    warm_up: Callable[[], object]
    memory: MemoryGate
    note: str = ""  # for people: weights in 8 bits, and `Denoiser.note`
    render_preview: RenderPreview = render_preview
    now_ns: Callable[[], int] = time.perf_counter_ns  # a monotonic clock, by which the device's time is charged


LoadParts = Callable[
    [WorkerSettings, Path, torch.device, Mapping[str, LoraFiles], Callable[[StartPhase], None]], SamplerParts
]


def load_parts(
    settings: WorkerSettings,
    model_folder: Path,
    device: torch.device,
    lora_files: Mapping[str, LoraFiles],
    end_phase: Callable[[StartPhase], None],
) -> SamplerParts:
    """Load the transformer and its LoRAs, compile its blocks if they are to be, and measure the memory that is left.

    Args:
        settings: of the replica.
        model_folder: with the model's parts.
        device: to load to.
        lora_files: of each LoRA, by name.
        end_phase: is told when the weights are there, and when the graphs are.

    Raises:
        PermanentError: `model_incomplete`, `model_mismatch`, `weights_unsupported`, as `load_transformer` does;
            `attention_unsupported`, as `check_fp8_attention` does; `lora_unusable`, as `Loras` does.
    """
    dtype, weights = settings.model.dtype, settings.model.weights
    if settings.model.attends_in_fp8:
        check_fp8_attention(dtype, device)
    transformer = load_transformer(model_folder, dtype, device, weights)
    loras = Loras(transformer, lora_files)
    end_phase("weights")
    revision = model_fingerprint(model_folder, MODEL_PARTS, dtype, weights)
    compiled = compiled_block(transformer, settings.model, settings.sampling)
    rows_at_once = settings.sampling.rows_at_once
    denoiser = Denoiser(transformer, settings.sampling.min_step_s, compiled, rows_at_once, loras)
    if compiled is not None:
        denoiser.warm_up(settings.model)  # a step's memory is that of the graphs, or of none if they cannot be made
    form: Form = "compiled" if denoiser.block is compiled else "eager"

    def profile(revision: str, block: RunBlock, form: Form) -> MemoryProfile:
        by = partial(measure, block=block, rows_at_once=rows_at_once)
        return memory_profile(transformer, settings.model, revision, measure=by, form=form, rows_at_once=rows_at_once)

    profiles = [profile(revision, denoiser.block, form)]
    for name in loras.names:
        with loras.applied(LoraChoice(name, 1.0)):
            profiles.append(profile(f"{revision} + {loras.layout(name)}", run_block, "eager"))
    end_phase("graphs")
    return SamplerParts(
        revision=revision,
        prepare=denoiser.prepare,
        step=denoiser.step,
        warm_up=partial(denoiser.warm_up, settings.model),
        memory=MemoryGate(highest(profiles), memory_budget(device, settings.memory_fraction)),
        note=", ".join(filter(None, (f"{weights} weights" if weights else "", denoiser.note))),
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
        files = self._lora_files()
        self._loras = {name: each.digest for name, each in files.items()}
        self._parts = load_parts(settings, self._folder, self._device, files, self.end_phase)
        self._loop = StepLoop(
            self._parts.step,
            max_tokens=settings.sampling.max_batch_tokens,
            warm_up=self._parts.warm_up,
            now_ns=self._parts.now_ns,
        )
        self.start_worker(settings.slots, self._parts.memory.max_tokens, note=self._parts.note)
        self.recorder = SampleRecorder(
            model_folder=self._folder,
            store=self._store,
            transformer=self._parts.revision,
            dtype=self._model.dtype,
            sampling=settings.sampling,
            report=self.worker.report_now,
            render=self._parts.render_preview,
        )
        self.end_phase("warm_up")

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
        snapshot = await self._denoise_in_memory(running, start)
        running.clock.lap("denoise")
        if snapshot is None:
            return parked(running, start.step)
        if snapshot.done:
            await self._store_latents(running, snapshot)
        else:
            await self._store_state(running, snapshot, start)
        running.clock.lap("store")
        return None if snapshot.done else parked(running, snapshot.step)

    def _lora_files(self) -> dict[str, LoraFiles]:
        pins = StorePins(self._store)
        again = self._model.hash_at_start
        return {
            name: lora_files(name, lora, self._connections.open_bucket, pins=pins, hash_again=again)
            for name, lora in self._model.loras.items()
        }

    async def _load_state(self, running: RunningTask) -> SampleState:
        task = running.task
        revision = sample_revision(self._revision, task.video, self._loras)
        # A later attempt looks in any case: the report of the last checkpoint may not have reached the registry.
        may_have_checkpoint = task.checkpoint_step > 0 or task.attempt > 1
        if may_have_checkpoint:
            newest = await self.recorder.checkpoints(running, revision).newest(task.job_id, task.video)
            if newest is not None:
                RECORDER.count(names.RESUMES)
                running.span.event("resumed", {"mochi_serve.step": newest.step})
                return newest
        dtype = self._settings.dtypes["text_encoder"]
        label = WorkLabel(prompt_embeds_key(task.job_id), self._embeds_revision, dtype, task.video)
        _, embeds = await read_input(TaskStore(self._store, running), label)
        noise = await asyncio.to_thread(initial_noise, task.video)
        return SampleState(task.video, revision, self._model.dtype, 0, noise, embeds)

    async def _denoise_in_memory(self, running: RunningTask, start: SampleState) -> Snapshot | None:
        """As `_denoise`, once there is memory for the sample; None if it is to be parked before."""
        plan = start.spec.plan
        footprint = SampleFootprint(start.spec.clip.latents, plan.max_rows, plan.max_rows_kept)
        memory = self._parts.memory
        try:
            reserved = await memory.reserve(running, footprint)
            if not reserved or running.park_reason is not None:
                return None
            return await self._denoise(running, start)
        finally:
            memory.release(running)

    async def _denoise(self, running: RunningTask, start: SampleState) -> Snapshot:
        """The sample as it left the loop, done or not."""
        recording = self.recorder.begin(running, start)

        def after_step(sample: Sample, previous: Sample | None) -> None:
            running.progress(sample.step, sample.num_steps)
            recording.take(sample, previous)

        entry = self._loop.add(
            running,
            prepare=lambda: self._parts.prepare(start, self._loop.samples),
            after_step=after_step,
            exact=start.spec.alone,
        )
        writing = asyncio.create_task(recording.write())
        try:
            return await entry.result
        except StoppedError:
            raise
        except Exception:
            # The last state that is on the host is worth a checkpoint, whatever became of the device.
            await _cancel(writing)
            await self.recorder.save_checkpoint(running, entry.kept or recording.unwritten, start)
            raise
        finally:
            recording.close()
            # Nobody waits for a checkpoint or a preview that is under way: the sample is ahead of it.
            await _cancel(writing)

    async def _store_state(self, running: RunningTask, snapshot: Snapshot, start: SampleState) -> None:
        """Write the state with which the sample is parked, unless it is in storage.

        Older ones are left to the job's next checkpoint or its end: the slot does not wait for their deletion, and
        once the state is reported the job is another replica's, whose checkpoints nobody else may touch.
        """
        if not is_ahead_of_storage(running, snapshot.step, start):
            return
        key = checkpoint_key(running.task.job_id, snapshot.step)
        with counting_checkpoint() as size:
            data = await asyncio.to_thread(pack, key, replace(start, step=snapshot.step, latents=snapshot.latents))
            await TaskStore(self._store, running).put_result(key, data, CONTENT_TYPE)
            size.append(len(data))

    async def _store_latents(self, running: RunningTask, snapshot: Snapshot) -> None:
        task = running.task
        label = WorkLabel(latents_key(task.job_id), self._revision, self._model.dtype, task.video)

        choice = task.video.lora_choice
        lora = {} if choice is None else {"lora": self._loras[choice.name]}

        def packed() -> bytes:
            tensors = {"latents": snapshot.latents.float()}
            return work_files.pack(label, tensors, transformer=self._parts.revision, **lora)

        data = await asyncio.to_thread(packed)
        await TaskStore(self._store, running).put_result(label.key, data, CONTENT_TYPE)


def parked(running: RunningTask, step: int) -> Parked:
    """The end of a task whose state after `step` steps is in storage."""
    return Parked(step, running.park_reason or "", running.device_s, running.passes)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
