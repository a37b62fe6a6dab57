"""What goes on beside the denoising of a sample: checkpoints into storage, previews to the registry.

A `Recording` takes what is due on the loop's thread between two steps, when the device is idle; what it took is written
on the event loop and in other threads, which know nothing of the device.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from deployments.errors import StoppedError, WorkerError
from deployments.messages import Checkpointed, Event
from deployments.mochi.denoise import Sample
from deployments.mochi.preview import PreviewMap, find_preview, predicted_clean, preview_image
from deployments.replica.running_task import RunningTask, TaskStore, logger
from deployments.sampler.state import Checkpoints, SampleState
from deployments.sampler.step_loop import Snapshot
from deployments.sampler.step_spans import StepSpans
from deployments.settings import SamplingSettings
from deployments.storage.object_store import Store

Report = Callable[[RunningTask, Event], Awaitable[bool]]
"""Tells the registry of an event; whether it heard."""


@dataclass(frozen=True, slots=True)
class PreviewParts:
    """What a preview is made of: the middle latent frame before and after a step, on the CPU."""

    step: int  # denoising steps done after it
    before: Tensor  # [12, 1, H/8, W/8] fp32
    after: Tensor  # likewise
    sigmas: Tensor  # [2] fp32, before and after

    @classmethod
    def of(cls, previous: Sample, sample: Sample) -> Self:
        """Between two steps, on the loop's thread; `previous` is the sample one step before."""
        middle = slice(sample.latents.shape[1] // 2, sample.latents.shape[1] // 2 + 1)
        sigmas = sample.sigmas[previous.step : sample.step + 1]
        return cls(sample.step, previous.latents[:, middle].cpu(), sample.latents[:, middle].cpu(), sigmas.cpu())


RenderPreview = Callable[[PreviewMap, PreviewParts], bytes]


def render_preview(preview: PreviewMap, parts: PreviewParts) -> bytes:
    """A WebP of where the sample is heading, its middle latent frame."""
    return preview_image(preview, predicted_clean(parts.before, parts.after, parts.sigmas[0], parts.sigmas[-1]))


class SampleRecorder:
    """Writes checkpoints and sends previews of a sampler's samples. What fails here costs no sample.

    Args:
        model_folder: may hold the model's preview map.
        store: where checkpoints lie, and the preview map if the folder has none.
        transformer: the revision of the transformer alone, see `models.store.model_fingerprint`.
        dtype: of the model.
        sampling: how often to write and to send.
        report: tells the registry of a checkpoint.
        render: makes the preview's picture.
        preview_pause_s: seconds between two previews of a sample, at least: reports are no more frequent.
        now_s: a monotonic clock in seconds.
    """

    checkpoint_s: float
    """Seconds of sampling between two checkpoints of a sample; may be changed while samples are recorded."""

    preview_every: int
    """As in SamplingSettings."""

    def __init__(
        self,
        *,
        model_folder: Path,
        store: Store,
        transformer: str,
        dtype: str,
        sampling: SamplingSettings,
        report: Report,
        render: RenderPreview = render_preview,
        preview_pause_s: float = 0.2,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.checkpoint_s = sampling.checkpoint_s
        self.preview_every = sampling.preview_every
        self.preview_pause_s = preview_pause_s
        self.now_s = now_s
        self._model_folder = model_folder
        self._store = store
        self._transformer = transformer
        self._dtype = dtype
        self._report = report
        self._render = render
        self._preview_map: PreviewMap | None = None
        self._unexpected_errors = 0

    def checkpoints(self, running: RunningTask, revision: str) -> Checkpoints:
        """The checkpoints of the task's job, as long as the task is not stopped. revision: as of `SampleState`."""
        return Checkpoints(TaskStore(self._store, running), revision, self._dtype)

    def begin(self, running: RunningTask, start: SampleState) -> "Recording":
        """Begin to record a sample. start: the state that it came with."""
        return Recording(self, running, start)

    async def find_preview_map(self) -> None:
        """Look for the model's preview map, if previews are made and none is known yet."""
        if self.preview_every and not self.has_preview_map:
            await self._try("preview map", self._find_preview_map())

    @property
    def has_preview_map(self) -> bool:
        """Whether there can be previews."""
        return self._preview_map is not None

    async def save_checkpoint(self, running: RunningTask, snapshot: Snapshot | None, start: SampleState) -> None:
        """Write a checkpoint of the sample if it is ahead of the last one, and tell the registry."""
        if snapshot is not None and is_ahead_of_storage(running, snapshot.step, start):
            await self._try("checkpoint", self._save_checkpoint(running, snapshot, start))

    async def send_preview(self, running: RunningTask, parts: PreviewParts) -> None:
        """Attach a preview to the progress, if the model has a map for it."""
        await self._try("preview", self._send_preview(running, parts))

    async def _save_checkpoint(self, running: RunningTask, snapshot: Snapshot, start: SampleState) -> None:
        state = replace(start, step=snapshot.step, latents=snapshot.latents)
        await self.checkpoints(running, start.revision).save(running.task.job_id, state)
        running.checkpoint_step = snapshot.step
        await self._report(running, Checkpointed(snapshot.step))

    async def _find_preview_map(self) -> None:
        self._preview_map = await find_preview(self._model_folder, self._store, self._transformer)

    async def _send_preview(self, running: RunningTask, parts: PreviewParts) -> None:
        if self._preview_map is not None:
            running.attach_preview(await asyncio.to_thread(self._render, self._preview_map, parts))

    async def _try(self, what: str, work: Awaitable[None]) -> None:
        """Do it and log what it raises: that costs nothing yet, and the next one may succeed."""
        try:
            await work
        except StoppedError:
            return
        except WorkerError as error:
            logger.warning("no %s this time: %s", what, error)
        except Exception:
            self._unexpected_errors += 1
            logger.exception("no %s this time; unforeseen error %d beside this sampler", what, self._unexpected_errors)


class Recording:
    """A checkpoint and a preview of one sample now and then.

    Of each kind one at a time is taken and written: what falls due meanwhile waits for the step after.
    """

    def __init__(self, recorder: SampleRecorder, running: RunningTask, start: SampleState) -> None:
        self._recorder = recorder
        self._running = running
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._checkpoint_at = self._preview_at = recorder.now_s()
        self._previewed_step = start.step
        self._unwritten: Snapshot | None = None  # taken, and not in storage yet
        self._unsent: PreviewParts | None = None
        self._spans = StepSpans(running.span)
        self._step = start.step

    @property
    def unwritten(self) -> Snapshot | None:
        """What was taken for a checkpoint that is not written yet."""
        return self._unwritten

    def take(self, sample: Sample, previous: Sample | None) -> None:
        """Copy to the host what is due; cheap if nothing is. On the loop's thread, between two steps."""
        now = self._recorder.now_s()
        self._step = sample.step
        if previous is None:
            self._spans.begin(sample.step)
        took = self._take_checkpoint(sample, now)
        if self._take_preview(sample, previous, now) or took:
            self._loop.call_soon_threadsafe(self._news.set)

    def close(self) -> None:
        """The sample has left the loop."""
        self._spans.end(self._step)

    def _take_checkpoint(self, sample: Sample, now: float) -> bool:
        too_early = now - self._checkpoint_at < self._recorder.checkpoint_s
        if self._unwritten is not None or too_early or not sample.resumable:
            return False
        self._checkpoint_at = now
        if sample.done or not is_ahead_of_storage(self._running, sample.step, self._start):
            return False
        self._unwritten = Snapshot.of(sample)
        self._spans.checkpoint(sample.step)
        return True

    def _take_preview(self, sample: Sample, previous: Sample | None, now: float) -> bool:
        recorder = self._recorder
        if not recorder.preview_every or previous is None or self._unsent is not None or not recorder.has_preview_map:
            return False
        too_early = now - self._preview_at < recorder.preview_pause_s
        if too_early or sample.step - self._previewed_step < recorder.preview_every:
            return False
        self._preview_at = now
        self._previewed_step = sample.step
        self._unsent = PreviewParts.of(previous, sample)
        return True

    async def write(self) -> None:
        """Write and send what was taken, until it is cancelled."""
        await self._recorder.find_preview_map()
        while True:
            await self._news.wait()
            self._news.clear()
            parts, self._unsent = self._unsent, None
            if parts is not None:
                await self._recorder.send_preview(self._running, parts)
            if self._unwritten is not None:
                await self._recorder.save_checkpoint(self._running, self._unwritten, self._start)
                self._unwritten = None


def is_ahead_of_storage(running: RunningTask, step: int, start: SampleState) -> bool:
    """Whether a sample of so many steps has done some that no checkpoint holds. start: the state it came with."""
    return step > max(start.step, running.checkpoint_step)
