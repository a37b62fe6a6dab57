"""What may happen to samples on their way, played on the real engine one pass at a time.

A scenario is some requests: when each comes, how often each is checkpointed, where each is moved or cancelled, and
which engines crash. The engine is the real one (`StepLoop`, `StepBatcher`, `denoise_step`, `SampleState`); one pass of
each loop is let through at each tick, so that a scenario that fails fails again, and shrinks.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from deployments.errors import StoppedError
from deployments.messages import VideoSpec
from deployments.mochi.denoise import Sample, denoise_step, initial_noise, rope_tables, start_sample
from deployments.mochi.loading import DtypeName, load_transformer
from deployments.prompts.prompt_encoder import TextEncoder
from deployments.replica.running_task import RunningTask
from deployments.sampler.state import SampleState, pack, unpack
from deployments.sampler.step_loop import LoopEntry, StepLoop
from tests.support.worker_fakes import SHAPES, GatedStep, running_task

MAX_TICKS = 1000
REVISION = "this model"
DTYPE: DtypeName = "float32"


@dataclass(frozen=True)
class Plan:
    """What happens to one request; steps are its own denoising steps.

    comes: at this tick. checkpoint_every: so many steps, 0 for never. moves: after which step it is told to yield, and
    to which engine it goes. in_a_step: it is told things in the middle of the step after, not between two.
    cancelled_at: after this step, None for never.
    """

    video: VideoSpec
    comes: int = 0
    engine: int = 0
    checkpoint_every: int = 0
    moves: tuple[tuple[int, int], ...] = ()
    in_a_step: bool = False
    cancelled_at: int | None = None


@dataclass(frozen=True)
class Scenario:
    """crashes: at which tick which engine loses all that it holds. max_tokens: of a pass."""

    plans: tuple[Plan, ...]
    max_tokens: int
    crashes: tuple[tuple[int, int], ...] = ()


@cache
def transformer() -> Any:
    return load_transformer(SHAPES, DTYPE, torch.device("cpu"))


@cache
def text_encoder() -> TextEncoder:
    return TextEncoder(SHAPES, DTYPE, torch.device("cpu"), 16)


@cache
def embeds(prompt: str, negative_prompt: str) -> dict[str, Tensor]:
    return text_encoder().encode(prompt, negative_prompt)


def first_state(video: VideoSpec) -> SampleState:
    return SampleState(video, REVISION, DTYPE, 0, initial_noise(video), embeds(video.prompt, video.negative_prompt))


def read(data: bytes, video: VideoSpec) -> SampleState:
    return unpack("sample", data, video, REVISION, DTYPE)


def to_row(state: SampleState) -> Sample:
    row = start_sample(transformer(), state.spec, state.embeds, rope_tables(transformer(), state.spec.clip.latents))
    return replace(row, latents=state.latents, step=state.step)


def step(rows: Sequence[Sample]) -> list[Sample]:
    return denoise_step(transformer(), rows)


@torch.no_grad()
def advance(data: bytes, video: VideoSpec, until: int) -> bytes:
    """From stored state to stored state without the loop; for another process."""
    torch.set_num_threads(1)
    state = read(data, video)
    row = to_row(state)
    while row.step < until:
        (row,) = step([row])
    return pack(replace(state, step=row.step, latents=row.latents))


@dataclass(eq=False)
class PlayedSample:
    """A request on its way.

    data: its last state in storage, after `saved` steps. step: the last that was run. run, lost: how many steps were
    run for it, and were so in vain. latents: the end.
    """

    plan: Plan
    data: bytes = field(repr=False)
    engine: int
    saved: int = 0
    step: int = 0
    run: int = 0
    lost: int = 0
    moved: int = 0
    cancelled: bool = False
    latents: Tensor | None = field(default=None, repr=False)
    resident: LoopEntry | None = field(default=None, repr=False)
    running: RunningTask = field(default_factory=running_task, repr=False)

    @property
    def over(self) -> bool:
        return self.cancelled or self.latents is not None

    @property
    def left(self) -> bool:
        return self.resident is not None and self.resident.left.done()

    def enter(self, loop: StepLoop) -> None:
        state = read(self.data, self.plan.video)
        self.step, self.running = state.step, running_task(video=self.plan.video)
        self.resident = loop.enter(self.running, lambda: to_row(state), self._after_step, self.plan.video.exact)

    def _after_step(self, row: Sample) -> None:
        self.run += row.step - self.step
        self.step = row.step
        if not self.plan.in_a_step:
            self._tell()
        self.running.progress(row.step, row.num_steps)

    def _tell(self) -> None:
        """What the registry has to say after this many steps."""
        plan = self.plan
        if plan.cancelled_at is not None and self.step >= plan.cancelled_at:
            self.running.stop()
        elif self.moved < len(plan.moves) and self.step >= plan.moves[self.moved][0]:
            self.running.ask_to_park("it moves")

    def look(self) -> None:
        """What goes on beside the thread, while it stands before its next pass."""
        if self.resident is None or self.left:
            return
        if self.plan.in_a_step:
            self._tell()
        row, every = self.resident.row, self.plan.checkpoint_every
        if row is not None and every and row.step >= self.saved + every:
            self._save(row)

    def _save(self, row: Sample) -> None:
        self.data = pack(replace(read(self.data, self.plan.video), step=row.step, latents=row.latents))
        self.saved = row.step

    def collect(self) -> None:
        """Heed how it left its engine, if it did."""
        if self.resident is None or not self.left:
            return
        try:
            row = self.resident.left.result()
        except StoppedError:
            self.cancelled = self.running.stopped
            self.lost += 0 if self.cancelled else self.step - self.saved
        else:
            self._let_go(row)
        self.resident = None

    def _let_go(self, row: Sample) -> None:
        if row.done:
            self.latents = row.latents
            return
        self._save(row)
        self.engine = self.plan.moves[self.moved][1]
        self.moved += 1


class Engine:
    """A loop whose passes are let through one by one."""

    def __init__(self, max_tokens: int) -> None:
        self._gate = GatedStep(step)
        self._loop = StepLoop(self._gate, max_tokens)
        self._inside: list[LoopEntry] = []

    async def enter(self, sample: PlayedSample) -> None:
        """Samples that come to an idle engine do not race for its first pass: the one that is first has it alone."""
        was_idle = not self._alive()
        sample.enter(self._loop)
        assert sample.resident is not None
        self._inside = [*self._alive(), sample.resident]
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
            await asyncio.wait([resident.left for resident in alive])

    def _alive(self) -> list[LoopEntry]:
        return [resident for resident in self._inside if not resident.left.done()]


def play(scenario: Scenario) -> list[PlayedSample]:
    """The samples as they ended."""
    samples: list[PlayedSample] = []
    asyncio.run(_play(scenario, samples))
    return samples


async def _play(scenario: Scenario, samples: list[PlayedSample]) -> None:
    samples += [PlayedSample(plan, pack(first_state(plan.video)), plan.engine) for plan in scenario.plans]
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
        if not sample.over and sample.resident is None and sample.plan.comes <= tick:
            await engines[sample.engine].enter(sample)
    for engine in engines:
        await engine.tick()
    for sample in samples:
        sample.look()
        sample.collect()
