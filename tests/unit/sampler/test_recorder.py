"""What goes on beside the denoising of a sample, without a loop: an entry whose sample the test sets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from deployments.keys import checkpoint_key
from deployments.messages import Checkpointed, Event
from deployments.mochi.denoise import Sample, TextConditioning, initial_noise
from deployments.mochi.preview import PreviewMap
from deployments.replica.running_task import RunningTask
from deployments.sampler.recorder import SampleRecorder, is_ahead_of_storage
from deployments.sampler.state import SampleState
from deployments.sampler.step_loop import LoopEntry
from deployments.settings import SamplingSettings
from tests.support.waiting import until
from tests.support.workers.fakes import SHAPES, running_task, spec
from tests.support.workers.memory_store import MemoryStore

VIDEO = spec(width=32, height=32, num_frames=7, num_inference_steps=40)
TEXT = TextConditioning(torch.zeros(1, 1), torch.zeros(1), 1)


def start(step: int = 0) -> SampleState:
    mask = torch.ones(4, dtype=torch.bool)
    embeds = {"prompt_embeds": torch.ones(4, 8), "prompt_mask": mask}
    embeds |= {"negative_embeds": torch.zeros(4, 8), "negative_mask": mask.clone()}
    return SampleState(VIDEO, "revision", "float32", step, initial_noise(VIDEO), embeds)


def sample(step: int) -> Sample:
    rope = (torch.zeros(1), torch.zeros(1))
    return Sample(initial_noise(VIDEO) + step, step, torch.linspace(0, 1, 41), 1.0, TEXT, TEXT, rope)


class Fixture:
    """A recorder, its store, what it reported and which previews it made."""

    def __init__(self, model_folder: Path = SHAPES, **sampling: float) -> None:
        self.store = MemoryStore()
        self.events: list[Event] = []
        self.previews: list[tuple[int, int]] = []
        settings = {"checkpoint_s": 1000, "preview_every": 5, "max_batch_tokens": 1000} | sampling
        self.recorder = SampleRecorder(
            model_folder=model_folder,
            store=self.store,
            transformer="transformer",
            revision="revision",
            dtype="float32",
            sampling=SamplingSettings.model_validate(settings),
            report=self._report,
            render=self._render,
            poll_s=0.001,
        )

    async def _report(self, running: RunningTask, event: Event) -> bool:
        self.events.append(event)
        return True

    def _render(self, preview: PreviewMap, previous: Sample, newest: Sample) -> bytes:
        self.previews.append((previous.step, newest.step))
        return b"picture"

    @asynccontextmanager
    async def recording(self, running: RunningTask, entry: LoopEntry) -> AsyncIterator[None]:
        task = asyncio.create_task(self.recorder.record(running, entry, start()))
        yield
        assert not task.done(), "it goes on until it is cancelled"
        task.cancel()
        await asyncio.wait([task])


def entry_at(running: RunningTask, step: int) -> LoopEntry:
    def never(*_: object) -> Sample:
        raise AssertionError("there is no loop")

    result: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
    entry = LoopEntry(running, never, lambda _: None, False, result)
    go_to(entry, step)
    return entry


def go_to(entry: LoopEntry, step: int) -> None:
    entry.previous = sample(step - 1)
    entry.sample = sample(step)


async def test_a_checkpoint_is_written_and_then_reported() -> None:
    running, made = running_task(), Fixture(checkpoint_s=0.001)
    async with made.recording(running, entry_at(running, 3)):
        await until(lambda: bool(made.events))
    assert made.events == [Checkpointed(3)] and running.checkpoint_step == 3
    assert made.store.written == [checkpoint_key("video_1", 3)]
    kept = await made.recorder.checkpoints(running).newest("video_1", VIDEO)
    assert kept is not None and torch.equal(kept.latents, sample(3).latents)


async def test_the_interval_of_checkpoints_may_change_meanwhile() -> None:
    running, made = running_task(), Fixture()
    async with made.recording(running, entry_at(running, 3)):
        made.recorder.checkpoint_s = 0.001
        await until(lambda: bool(made.events))
    assert made.events == [Checkpointed(3)]


@pytest.mark.parametrize(("start_step", "checkpoint_step", "ahead"), [(0, 0, True), (3, 0, False), (0, 3, False)])
async def test_a_sample_that_is_not_ahead_has_no_checkpoint(start_step: int, checkpoint_step: int, ahead: bool) -> None:
    running, made = running_task(), Fixture()
    running.checkpoint_step = checkpoint_step
    assert is_ahead_of_storage(running, sample(3), start(start_step)) == ahead
    await made.recorder.save_checkpoint(running, sample(3), start(start_step))
    assert bool(made.events) == bool(made.store.written) == ahead


async def test_a_sample_that_was_not_prepared_has_no_checkpoint() -> None:
    made = Fixture()
    await made.recorder.save_checkpoint(running_task(), None, start())
    assert made.store.changes == []


async def test_a_preview_is_of_two_steps_and_comes_once_for_so_many() -> None:
    running, made = running_task(), Fixture(preview_every=5)
    running.progress(4, 40)
    entry = entry_at(running, 4)
    async with made.recording(running, entry):
        go_to(entry, 5)
        await until(lambda: len(made.previews) == 1)
        go_to(entry, 9)
        await asyncio.sleep(0.02)
        go_to(entry, 10)
        await until(lambda: len(made.previews) == 2)
    assert made.previews == [(4, 5), (9, 10)]
    assert running.latest is not None and running.latest.preview == b"picture"


@pytest.mark.parametrize("preview_every", [0, 5])
async def test_without_a_map_or_when_turned_off_there_is_no_preview(tmp_path: Path, preview_every: int) -> None:
    folder = SHAPES if preview_every == 0 else tmp_path
    running, made = running_task(), Fixture(folder, preview_every=preview_every, checkpoint_s=0.001)
    async with made.recording(running, entry_at(running, 20)):
        await until(lambda: bool(made.events))
    assert made.previews == []


async def test_a_stopped_task_writes_nothing() -> None:
    running, made = running_task(), Fixture()
    running.stop()
    await made.recorder.save_checkpoint(running, sample(3), start())
    assert made.store.changes == [] and made.events == []
