"""What goes on beside the denoising of a sample: checkpoints into storage, previews to the registry."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from deployments.errors import StoppedError, WorkerError
from deployments.messages import Checkpointed, Event
from deployments.mochi.denoise import Sample
from deployments.mochi.preview import PreviewMap, find_preview, predicted_clean, preview_image
from deployments.replica.running_task import RunningTask, TaskStore, logger
from deployments.sampler.state import Checkpoints, SampleState
from deployments.sampler.step_loop import LoopEntry
from deployments.settings import SamplingSettings
from deployments.storage.object_store import Store

Report = Callable[[RunningTask, Event], Awaitable[bool]]
"""Tells the registry of an event; whether it heard."""

RenderPreview = Callable[[PreviewMap, Sample, Sample], bytes]


def render_preview(preview: PreviewMap, previous: Sample, sample: Sample) -> bytes:
    """A WebP of where the sample is heading, its middle latent frame; `previous` is the sample one step before."""
    middle = slice(sample.latents.shape[1] // 2, sample.latents.shape[1] // 2 + 1)
    sigmas = sample.sigmas.cpu()
    clean = predicted_clean(
        previous.latents[:, middle].cpu(),
        sample.latents[:, middle].cpu(),
        sigmas[previous.step],
        sigmas[sample.step],
    )
    return preview_image(preview, clean)


class SampleRecorder:
    """Writes checkpoints and sends previews of a sampler's samples. What fails here costs no sample.

    Args:
        model_folder: may hold the model's preview map.
        store: where checkpoints lie, and the preview map if the folder has none.
        transformer: the revision of the transformer alone, see `model_store.model_fingerprint`.
        revision: of what the sampler leaves, see `work_revision`.
        dtype: of the model.
        sampling: how often to write and to send.
        report: tells the registry of a checkpoint.
        render: makes the preview's picture.
        poll_s: seconds between two looks at a sample, at most.
    """

    checkpoint_s: float
    """Seconds of sampling between two checkpoints of a sample; may be changed while samples are recorded."""

    def __init__(
        self,
        *,
        model_folder: Path,
        store: Store,
        transformer: str,
        revision: str,
        dtype: str,
        sampling: SamplingSettings,
        report: Report,
        render: RenderPreview = render_preview,
        poll_s: float = 0.2,
    ) -> None:
        self.checkpoint_s = sampling.checkpoint_s
        self._preview_every = sampling.preview_every
        self._model_folder = model_folder
        self._store = store
        self._transformer = transformer
        self._revision = revision
        self._dtype = dtype
        self._report = report
        self._render = render
        self._poll_s = poll_s
        self._preview_map: PreviewMap | None = None
        self._unexpected_errors = 0

    def checkpoints(self, running: RunningTask) -> Checkpoints:
        """The checkpoints of the task's job, as long as the task is not stopped."""
        return Checkpoints(TaskStore(self._store, running), self._revision, self._dtype)

    async def record(self, running: RunningTask, entry: LoopEntry, start: SampleState) -> None:
        """A checkpoint and a preview now and then, until it is cancelled. start: the state the sample came with."""
        checkpoint_at = time.monotonic()
        previewed_step = start.step
        if self._preview_every and self._preview_map is None:
            await self._try("preview map", self._find_preview_map())
        while True:
            await asyncio.sleep(min(self._poll_s, self.checkpoint_s))
            if time.monotonic() - checkpoint_at >= self.checkpoint_s:
                checkpoint_at = time.monotonic()
                await self.save_checkpoint(running, entry.sample, start)
            previous = entry.previous
            sample = entry.sample
            if not self._preview_every or previous is None or sample is None:
                continue
            if sample.step - previewed_step >= self._preview_every:
                previewed_step = sample.step
                await self._try("preview", self._send_preview(running, previous, sample))

    async def save_checkpoint(self, running: RunningTask, sample: Sample | None, start: SampleState) -> None:
        """Write a checkpoint of the sample if it is ahead of the last one, and tell the registry."""
        if sample is not None and is_ahead_of_storage(running, sample, start):
            await self._try("checkpoint", self._save_checkpoint(running, sample, start))

    async def _save_checkpoint(self, running: RunningTask, sample: Sample, start: SampleState) -> None:
        state = replace(start, step=sample.step, latents=sample.latents)
        await self.checkpoints(running).save(running.task.job_id, state)
        running.checkpoint_step = sample.step
        await self._report(running, Checkpointed(sample.step))

    async def _find_preview_map(self) -> None:
        self._preview_map = await find_preview(self._model_folder, self._store, self._transformer)

    async def _send_preview(self, running: RunningTask, previous: Sample, sample: Sample) -> None:
        """Attach a preview to the progress, if the model has a map for it."""
        if self._preview_map is not None:
            running.attach_preview(await asyncio.to_thread(self._render, self._preview_map, previous, sample))

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


def is_ahead_of_storage(running: RunningTask, sample: Sample, start: SampleState) -> bool:
    """Whether the sample has done steps that no checkpoint holds. start: the state it came with."""
    return sample.step > max(start.step, running.checkpoint_step)
