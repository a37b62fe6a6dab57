"""What goes on beside the denoising of a sample, without a loop: the test takes its steps."""

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
from deployments.sampler.recorder import PreviewParts, Recording, SampleRecorder, is_ahead_of_storage
from deployments.sampler.state import SampleState
from deployments.sampler.step_loop import Snapshot
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
    rope = torch.zeros(1, dtype=torch.complex64)
    return Sample(initial_noise(VIDEO) + step, step, torch.linspace(0, 1, 41), 1.0, TEXT, TEXT, rope)


class Fixture:
    """A recorder, its store, its clock, what it reported and which previews it made."""

    def __init__(self, model_folder: Path = SHAPES, **sampling: float) -> None:
        self.store = MemoryStore()
        self.events: list[Event] = []
        self.previews: list[int] = []
        self.now_s = 100.0
        settings = {"checkpoint_s": 1000, "preview_every": 5, "max_batch_tokens": 1000} | sampling
        self.recorder = SampleRecorder(
            model_folder=model_folder,
            store=self.store,
            transformer="transformer",
            dtype="float32",
            sampling=SamplingSettings.model_validate(settings),
            report=self._report,
            render=self._render,
            now_s=lambda: self.now_s,
        )

    async def _report(self, running: RunningTask, event: Event) -> bool:
        self.events.append(event)
        return True

    def _render(self, preview: PreviewMap, parts: PreviewParts) -> bytes:
        self.previews.append(parts.step)
        return b"picture"

    @asynccontextmanager
    async def recording(self, running: RunningTask, begun: SampleState | None = None) -> AsyncIterator[Recording]:
        await self.recorder.find_preview_map()
        recording = self.recorder.begin(running, begun or start())
        task = asyncio.create_task(recording.write())
        yield recording
        assert not task.done(), "it goes on until it is cancelled"
        task.cancel()
        await asyncio.wait([task])


def step_to(recording: Recording, step: int) -> None:
    """As the loop does after a step."""
    recording.take(sample(step), sample(step - 1))


async def test_a_checkpoint_is_written_and_then_reported() -> None:
    running, made = running_task(), Fixture(checkpoint_s=10)
    async with made.recording(running) as recording:
        step_to(recording, 2)
        made.now_s += 10
        step_to(recording, 3)
        await until(lambda: bool(made.events))
    assert made.events == [Checkpointed(3)] and running.checkpoint_step == 3
    assert made.store.written == [checkpoint_key("video_1", 3)]
    kept = await made.recorder.checkpoints(running, "revision").newest("video_1", VIDEO)
    assert kept is not None and torch.equal(kept.latents, sample(3).latents)


async def test_the_interval_of_checkpoints_may_change_meanwhile() -> None:
    running, made = running_task(), Fixture()
    async with made.recording(running) as recording:
        made.now_s += 5
        made.recorder.checkpoint_s = 5
        step_to(recording, 3)
        await until(lambda: bool(made.events))
    assert made.events == [Checkpointed(3)]


async def test_one_checkpoint_at_a_time_is_on_the_host() -> None:
    """While the store is slow, steps cost no copies, and the next checkpoint is of the newest step."""
    running, made = running_task(), Fixture(checkpoint_s=1)
    async with made.recording(running) as recording:
        for step in (1, 2, 3):
            made.now_s += 1
            step_to(recording, step)
        assert recording.unwritten is not None and recording.unwritten.step == 1
        await until(lambda: recording.unwritten is None)
        made.now_s += 1
        step_to(recording, 4)
        await until(lambda: len(made.events) == 2)
    assert made.events == [Checkpointed(1), Checkpointed(4)]


@pytest.mark.parametrize(("begun_at", "step"), [(3, 3), (0, 40)])
async def test_what_is_in_storage_or_done_is_not_copied(begun_at: int, step: int) -> None:
    running, made = running_task(), Fixture(checkpoint_s=1)
    async with made.recording(running, start(begun_at)) as recording:
        made.now_s += 1
        recording.take(sample(step), None)
        assert recording.unwritten is None


@pytest.mark.parametrize(("start_step", "checkpoint_step", "ahead"), [(0, 0, True), (3, 0, False), (0, 3, False)])
async def test_a_sample_that_is_not_ahead_has_no_checkpoint(start_step: int, checkpoint_step: int, ahead: bool) -> None:
    running, made = running_task(), Fixture()
    running.checkpoint_step = checkpoint_step
    assert is_ahead_of_storage(running, 3, start(start_step)) == ahead
    await made.recorder.save_checkpoint(running, Snapshot.of(sample(3)), start(start_step))
    assert bool(made.events) == bool(made.store.written) == ahead


async def test_a_sample_that_was_not_prepared_has_no_checkpoint() -> None:
    made = Fixture()
    await made.recorder.save_checkpoint(running_task(), None, start())
    assert made.store.changes == []


async def test_a_preview_comes_once_for_so_many_steps_and_no_more_often_than_it_is_reported() -> None:
    running, made = running_task(), Fixture(preview_every=5)
    running.progress(4, 40)
    async with made.recording(running) as recording:
        for step in range(1, 9):
            made.now_s += 1
            step_to(recording, step)
        await until(lambda: made.previews == [5])
        step_to(recording, 9)
        step_to(recording, 10)
        await until(lambda: made.previews == [5, 10])
        made.now_s += 0.1
        step_to(recording, 15)
        made.now_s += 0.2
        step_to(recording, 16)
        await until(lambda: made.previews == [5, 10, 16])
    assert running.latest is not None and running.latest.preview == b"picture"


def test_a_preview_is_made_of_the_middle_frame_of_two_steps() -> None:
    parts = PreviewParts.of(sample(4), sample(5))
    middle = sample(5).latents.shape[1] // 2
    assert torch.equal(parts.before, sample(4).latents[:, middle : middle + 1])
    assert torch.equal(parts.after, sample(5).latents[:, middle : middle + 1])
    assert torch.equal(parts.sigmas, sample(5).sigmas[4:6])


@pytest.mark.parametrize("preview_every", [0, 5])
async def test_without_a_map_or_when_turned_off_there_is_no_preview(tmp_path: Path, preview_every: int) -> None:
    folder = SHAPES if preview_every == 0 else tmp_path
    running, made = running_task(), Fixture(folder, preview_every=preview_every, checkpoint_s=1)
    async with made.recording(running) as recording:
        made.now_s += 1
        step_to(recording, 20)
        await until(lambda: bool(made.events))
    assert made.previews == []


async def test_a_stopped_task_writes_nothing() -> None:
    running, made = running_task(), Fixture()
    running.stop()
    await made.recorder.save_checkpoint(running, Snapshot.of(sample(3)), start())
    assert made.store.changes == [] and made.events == []
