"""What may happen to samples on their way, played on the real engine one pass at a time.

A scenario is some requests: when each comes, how often each is checkpointed, where each is moved or cancelled, and
which engines crash. The engine is the real one (`StepLoop`, `StepBatcher`, `denoise_step`, `SampleState`); one pass of
each loop is let through at each tick, so that a scenario that fails fails again, and shrinks.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from deployments.dtypes import DtypeName
from deployments.errors import StoppedError
from deployments.messages import LoraChoice, VideoSpec
from deployments.mochi.denoise import Sample, denoise_step, initial_noise, rope_tables, start_sample
from deployments.mochi.loras import Loras
from deployments.mochi.weights.loading import load_transformer
from deployments.prompts.prompt_encoder import TextEncoder
from deployments.replica.running_task import RunningTask
from deployments.sampler.state import SampleState, pack, unpack
from deployments.sampler.step_loop import LoopEntry, Snapshot, StepLoop
from tests.support.workers.fakes import SHAPES, GatedStep, running_task
from tests.support.workers.loras import peft_lora

MAX_TICKS = 1000
PASS_NS = 1_000_000
NAME = "sample"
REVISION = "this model"
DTYPE: DtypeName = "float32"
LORAS = ("ink", "clay")
"""That a request may name; their weights are random."""


@dataclass(frozen=True)
class Plan:
    """What happens to one request; steps are its own denoising steps."""

    video: VideoSpec
    arrival: int = 0  # the tick at which it comes
    engine: int = 0  # the one that it comes to
    checkpoint_every: int = 0  # steps; 0 for never
    moves: tuple[tuple[int, int], ...] = ()  # after which step it is asked to park, and to which engine it goes
    mid_step: bool = False  # it is asked to park and stopped in the middle of the step after, not between two
    cancelled_at: int | None = None  # after this step; None for never


@dataclass(frozen=True)
class Scenario:
    """What happens to some requests."""

    plans: tuple[Plan, ...]
    max_tokens: int  # of a pass
    crashes: tuple[tuple[int, int], ...] = ()  # at which tick which engine loses all that it holds


@cache
def transformer() -> Any:
    return load_transformer(SHAPES, DTYPE, torch.device("cpu"))


@cache
def loras() -> Loras:
    """Of `LORAS`."""
    with TemporaryDirectory() as folder:
        files = {
            name: peft_lora(Path(folder) / name, load_transformer(SHAPES, DTYPE, torch.device("cpu")), seed)
            for seed, name in enumerate(LORAS)
        }
        return Loras(transformer(), files)


def applied(choice: LoraChoice | None) -> AbstractContextManager[None]:
    return nullcontext() if choice is None else loras().applied(choice)


@cache
def text_encoder() -> TextEncoder:
    return TextEncoder(SHAPES, DTYPE, torch.device("cpu"), 16)


@cache
def embeds(prompt: str, negative_prompt: str) -> dict[str, Tensor]:
    return text_encoder().encode(prompt, negative_prompt)


def first_state(video: VideoSpec) -> SampleState:
    return SampleState(video, REVISION, DTYPE, 0, initial_noise(video), embeds(video.prompt, video.negative_prompt))


def read(data: bytes, video: VideoSpec) -> SampleState:
    return unpack(NAME, data, video, REVISION, DTYPE)


def to_sample(state: SampleState) -> Sample:
    rope = rope_tables(transformer(), state.spec.clip.latents)
    with applied(state.spec.lora_choice):
        sample = start_sample(transformer(), state.spec, state.embeds, rope)
    return replace(sample, latents=state.latents, step=state.step)


def step(samples: Sequence[Sample]) -> list[Sample]:
    with applied(samples[0].lora):
        return denoise_step(transformer(), samples)


@torch.no_grad()
def advance(data: bytes, video: VideoSpec, until: int) -> bytes:
    """From stored state to stored state without the loop; for another process."""
    torch.set_num_threads(1)
    state = read(data, video)
    sample = to_sample(state)
    while sample.step < until:
        (sample,) = step([sample])
    return pack(NAME, replace(state, step=sample.step, latents=sample.latents))


@dataclass(eq=False)
class PlayedSample:
    """A request on its way."""

    plan: Plan
    data: bytes = field(repr=False)  # its last state in storage
    engine: int
    saved_step: int = 0  # of that state
    step: int = 0  # the last that was run
    steps_run: int = 0  # in all
    steps_lost: int = 0  # of those, with a crash
    moved_at: list[int] = field(default_factory=list)  # after which steps it went to another engine
    cancelled: bool = False
    latents: Tensor | None = field(default=None, repr=False)  # at the end
    entry: LoopEntry | None = field(default=None, repr=False)
    running: RunningTask = field(default_factory=running_task, repr=False)

    @property
    def moves(self) -> int:
        """That were made."""
        return len(self.moved_at)

    @property
    def over(self) -> bool:
        return self.cancelled or self.latents is not None

    @property
    def has_left(self) -> bool:
        return self.entry is not None and self.entry.result.done()

    def enter(self, loop: StepLoop) -> None:
        state = read(self.data, self.plan.video)
        self.step = state.step
        self.running = running_task(video=self.plan.video)
        self.entry = loop.add(self.running, lambda: to_sample(state), self._after_step, self.plan.video.alone)

    def _after_step(self, sample: Sample, previous: Sample | None) -> None:
        self.steps_run += sample.step - self.step
        self.step = sample.step
        if not self.plan.mid_step:
            self._direct()
        self.running.progress(sample.step, sample.num_steps)

    def _direct(self) -> None:
        """What the registry has to say after this many steps."""
        plan = self.plan
        if plan.cancelled_at is not None and self.step >= plan.cancelled_at:
            self.running.stop()
        elif self.moves < len(plan.moves) and self.step >= plan.moves[self.moves][0]:
            self.running.ask_to_park("it moves")

    def look(self) -> None:
        """What goes on beside the thread, while it stands before its next pass."""
        if self.entry is None or self.has_left:
            return
        if self.plan.mid_step:
            self._direct()
        sample = self.entry.resumable
        every = self.plan.checkpoint_every
        if sample is not None and every and sample.step >= self.saved_step + every:
            self._save(sample)

    def _save(self, sample: Sample | Snapshot) -> None:
        self.data = pack(NAME, replace(read(self.data, self.plan.video), step=sample.step, latents=sample.latents))
        self.saved_step = sample.step

    def collect(self) -> None:
        """Heed how it left its engine, if it did."""
        if self.entry is None or not self.has_left:
            return
        try:
            sample = self.entry.result.result()
        except StoppedError:
            self.cancelled = self.running.stopped
            self.steps_lost += 0 if self.cancelled else self.step - self.saved_step
        else:
            self._finish_or_move(sample)
        self.entry = None

    def _finish_or_move(self, sample: Snapshot) -> None:
        if sample.done:
            self.latents = sample.latents
            return
        self._save(sample)
        self.engine = self.plan.moves[self.moves][1]
        self.moved_at.append(sample.step)


class Engine:
    """A loop whose passes are let through one by one."""

    def __init__(self, max_tokens: int) -> None:
        self._gate = GatedStep(step)
        # Turns go by what passes took: each the same, so that a scenario is played the same way again.
        self._loop = StepLoop(self._gate, max_tokens, now_ns=count(0, PASS_NS).__next__)
        self._inside: list[LoopEntry] = []

    async def enter(self, sample: PlayedSample) -> None:
        """Samples that come to an idle engine do not race for its first pass: the one that is first has it alone."""
        was_idle = not self._alive()
        sample.enter(self._loop)
        assert sample.entry is not None
        self._inside = [*self._alive(), sample.entry]
        if was_idle:
            await self._gate.at_gate(*self._inside)

    async def tick(self) -> None:
        if self._alive():
            self._gate.let_through()
            await self._gate.at_gate(*self._inside)

    async def crash(self) -> None:
        """Whoever is inside leaves without a state."""
        self._loop.close()
        self._gate.open()
        if alive := self._alive():
            await asyncio.wait([entry.result for entry in alive])

    def _alive(self) -> list[LoopEntry]:
        return [entry for entry in self._inside if not entry.result.done()]


def play(scenario: Scenario) -> list[PlayedSample]:
    """The samples as they ended."""
    samples: list[PlayedSample] = []
    asyncio.run(_play(scenario, samples))
    return samples


async def _play(scenario: Scenario, samples: list[PlayedSample]) -> None:
    samples += [PlayedSample(plan, pack(NAME, first_state(plan.video)), plan.engine) for plan in scenario.plans]
    engines = [Engine(scenario.max_tokens) for _ in range(2)]
    try:
        for tick in range(MAX_TICKS):
            for number in {number for at, number in scenario.crashes if at == tick}:
                await engines[number].crash()
                engines[number] = Engine(scenario.max_tokens)
            await _tick(tick, engines, samples)
            if all(sample.over for sample in samples):
                return
    finally:
        for engine in engines:
            await engine.crash()
    raise AssertionError(f"not over after {MAX_TICKS} ticks: {samples}")


async def _tick(tick: int, engines: list[Engine], samples: list[PlayedSample]) -> None:
    for sample in samples:
        sample.collect()
        if not sample.over and sample.entry is None and sample.plan.arrival <= tick:
            await engines[sample.engine].enter(sample)
    for engine in engines:
        await engine.tick()
    for sample in samples:
        sample.look()
        sample.collect()
