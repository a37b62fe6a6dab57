"""The denoising thread with samples of a few bytes and a step that only counts; see `GatedStep` for who comes when."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import StoppedError, TransientError, WorkerError
from deployments.logs.ids import current_ids, log_ids
from deployments.mochi.denoise import Sample, TextConditioning
from deployments.replica.running_task import RunningTask
from deployments.sampler.step_loop import AfterStep, LoopEntry, Snapshot, Step, StepLoop, shares
from deployments.step_rules import StepRules
from tests.support.waiting import until
from tests.support.workers.fakes import Clock, GatedStep, running_task

TEXT = TextConditioning(torch.zeros(1, 1), torch.zeros(1), 1)
ROPE = torch.zeros(1, dtype=torch.complex64)
TOKENS_OF_SAMPLE = 4


def sample(name: int, steps: int = 3, frames: int = 1) -> Sample:
    """Its latents begin as its name; a guidance of 1 makes one row of a pass of it."""
    latents = torch.full((12, frames, 4, 4), float(name))
    return Sample(latents, 0, torch.linspace(0, 1, steps + 1), 1.0, TEXT, TEXT, ROPE)


def count(samples: Sequence[Sample]) -> list[Sample]:
    return [replace(each, latents=each.latents.clone(), step=each.step + 1) for each in samples]


def seen(samples: Sequence[Sample | Snapshot]) -> list[tuple[int, int]]:
    """(name, step) of each."""
    return [(int(each.latents.flatten()[0]), each.step) for each in samples]


def enter(
    loop: StepLoop,
    first: Sample,
    running: RunningTask | None = None,
    after_step: AfterStep = lambda sample, previous: None,
    exact: bool = False,
) -> LoopEntry:
    return loop.add(running or running_task(), lambda: first, after_step, exact)


@asynccontextmanager
async def gated(
    step: Step = count, max_tokens: int = 100, now_ns: Callable[[], int] | None = None
) -> AsyncIterator[tuple[StepLoop, GatedStep]]:
    """A loop whose passes wait to be let through, and take no time unless a clock says so; at the end its thread is
    gone."""
    gate, before = GatedStep(step), denoising_threads()
    loop = StepLoop(gate, max_tokens, now_ns=now_ns or Clock())
    (thread,) = denoising_threads() - before
    try:
        yield loop, gate
    finally:
        loop.close()
        gate.open()
        await asyncio.to_thread(thread.join)


def denoising_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "denoise"}


async def passes(gate: GatedStep, *inside: LoopEntry) -> list[list[tuple[int, int]]]:
    """Let one pass after the other through until all have left; what they were."""
    made = []
    while samples := await gate.at_gate(*inside):
        made.append(seen(samples))
        gate.let_through()
    return made


async def test_samples_join_and_leave_between_steps() -> None:
    async with gated() as (loop, gate):
        first = enter(loop, sample(1, steps=4))
        assert seen(await gate.at_gate()) == [(1, 0)]
        second = enter(loop, sample(2, steps=2))
        gate.let_through()
        assert await passes(gate, first, second) == [[(1, 1), (2, 0)], [(1, 2), (2, 1)], [(1, 3)]]
        assert (await first.result).step == 4
        assert (await second.result).step == 2


async def test_one_may_leave_while_the_others_go_on() -> None:
    async with gated() as (loop, gate):
        first = enter(loop, sample(1, steps=2))
        await gate.at_gate()
        second = enter(loop, sample(2, steps=3))
        gate.let_through()
        await gate.at_gate()
        gate.let_through()
        await gate.at_gate()
        assert (await first.result).done and not second.result.done()
        gate.let_through()
        assert len(await passes(gate, second)) == 1


async def test_after_step_gets_each_new_sample_with_the_one_before_it() -> None:
    heard: list[tuple[int | None, int]] = []
    async with gated() as (loop, gate):
        entry = enter(
            loop,
            sample(1, steps=3),
            after_step=lambda new, before: heard.append((None if before is None else before.step, new.step)),
        )
        await gate.at_gate()
        assert entry.sample is not None and entry.sample.step == 0 and heard == [(None, 0)]
        await passes(gate, entry)
    assert heard == [(None, 0), (0, 1), (1, 2), (2, 3)]
    assert (await entry.result).step == 3


async def test_samples_are_those_inside() -> None:
    inside: list[list[tuple[int, int]]] = []

    def prepare() -> Sample:
        inside.append(seen(loop.samples))
        return sample(2)

    async with gated() as (loop, gate):
        first = enter(loop, sample(1))
        await gate.at_gate()
        second = loop.add(running_task(), prepare, lambda new, before: None, exact=False)
        gate.let_through()
        await passes(gate, first, second)
    assert inside == [[(1, 1)]]


async def test_shapes_take_turns() -> None:
    async with gated() as (loop, gate):
        all_of_them = [enter(loop, sample(1, frames=1))]
        await gate.at_gate()
        all_of_them += [enter(loop, sample(name, frames=frames)) for name, frames in ((2, 2), (3, 1), (4, 3))]
        made = await passes(gate, *all_of_them)
    names = [[name for name, _ in those] for those in made]
    assert names == [[1], [1, 3], [2], [4], [1, 3], [2], [4], [3], [2], [4]]


async def test_turns_go_by_the_time_that_passes_take() -> None:
    clock = Clock()

    def step(samples: Sequence[Sample]) -> list[Sample]:
        clock.advance(10 * samples[0].latents.shape[1] ** 2)
        return count(samples)

    async with gated(step, now_ns=clock) as (loop, gate):
        large = enter(loop, sample(1, frames=2))
        await gate.at_gate()
        small = enter(loop, sample(2, steps=8))
        made = await passes(gate, large, small)
    assert [name for names in made for name, _ in names] == [1, 2, 2, 2, 1, 2, 2, 2, 2, 1, 2]


async def test_a_pass_has_no_more_than_its_tokens() -> None:
    async with gated(max_tokens=2 * TOKENS_OF_SAMPLE) as (loop, gate):
        first = enter(loop, sample(0))
        await gate.at_gate()
        others = [enter(loop, sample(name)) for name in range(1, 5)]
        made = await passes(gate, first, *others)
    assert max(len(names) for names in made) == 2
    assert sum(len(names) for names in made) == 5 * 3


async def test_guidance_counts_twice() -> None:
    async with gated(max_tokens=3 * TOKENS_OF_SAMPLE) as (loop, gate):
        first = enter(loop, replace(sample(0), guidance_scale=2.0))
        await gate.at_gate()
        second = enter(loop, replace(sample(1), guidance_scale=2.0))
        made = await passes(gate, first, second)
    assert [len(names) for names in made] == [1] * 6


async def test_an_exact_sample_runs_alone() -> None:
    async with gated() as (loop, gate):
        first = enter(loop, sample(1))
        await gate.at_gate()
        others = [enter(loop, sample(2), exact=True), enter(loop, sample(3)), enter(loop, sample(4), exact=True)]
        made = await passes(gate, first, *others)
    names = [[name for name, _ in those] for those in made]
    assert all(those in ([2], [4]) for those in names if {2, 4} & set(those))
    assert sorted(sum(names, [])) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [3, 1] in names or [1, 3] in names


@pytest.mark.parametrize("how", ["stop", "yield"])
async def test_a_sample_outside_the_pass_leaves_at_the_next_boundary_and_not_only_at_its_turn(how: str) -> None:
    async with gated() as (loop, gate):
        enter(loop, sample(1, frames=1))
        await gate.at_gate()
        enter(loop, sample(2, frames=2))
        victim = enter(loop, sample(3, frames=3), running := running_task())
        for _ in range(3):
            await gate.at_gate()
            gate.let_through()
        assert seen(await gate.at_gate()) == [(3, 0)]
        gate.let_through()
        assert seen(await gate.at_gate()) == [(1, 2)]
        running.stop() if how == "stop" else running.ask_to_park("make room")
        gate.let_through()
        assert seen(await gate.at_gate()) == [(2, 1)]
        assert victim.result.done()
        if how == "stop":
            with pytest.raises(StoppedError):
                await victim.result
        else:
            assert seen([await victim.result]) == [(3, 1)]


async def test_a_park_in_the_middle_of_a_step_keeps_that_step() -> None:
    async with gated() as (loop, gate):
        entry = enter(loop, sample(1), victim := running_task())
        await gate.at_gate()
        victim.ask_to_park("make room")
        gate.let_through()
        assert (await entry.result).step == 1


async def test_a_park_in_the_last_step_is_too_late() -> None:
    async with gated() as (loop, gate):
        entry = enter(loop, sample(1, steps=1), victim := running_task())
        await gate.at_gate()
        victim.ask_to_park("make room")
        gate.let_through()
        assert (await entry.result).done


async def test_a_park_is_heeded_once_and_a_stop_after_it_wins() -> None:
    async with gated() as (loop, gate):
        twice = enter(loop, sample(1), asked_twice := running_task())
        await gate.at_gate()
        stopped = enter(loop, sample(2), asked_and_stopped := running_task())
        gate.let_through()
        await gate.at_gate()
        for _ in range(2):
            asked_twice.ask_to_park("make room")
        asked_and_stopped.ask_to_park("make room")
        asked_and_stopped.stop()
        gate.let_through()
        assert seen([await twice.result]) == [(1, 2)]
        with pytest.raises(StoppedError):
            await stopped.result


async def test_a_park_before_the_first_step_runs_none() -> None:
    async with gated() as (loop, gate):
        first, late = enter(loop, sample(1)), running_task()
        await gate.at_gate()
        late.ask_to_park("make room")
        second = enter(loop, sample(2), late)
        gate.let_through()
        assert seen(await gate.at_gate()) == [(1, 1)]
        assert seen([await second.result]) == [(2, 0)]
        assert not first.result.done()


async def test_a_task_stopped_outside_is_not_prepared() -> None:
    prepared: list[bool] = []

    def prepare() -> Sample:
        prepared.append(True)
        return sample(1)

    async with gated() as (loop, _):
        running = running_task()
        running.stop()
        with pytest.raises(StoppedError):
            await loop.add(running, prepare, lambda new, before: None, exact=False).result
    assert prepared == []


def failing(error: Exception) -> Callable[..., Sample]:
    def fail(*_: object) -> Sample:
        raise error

    return fail


async def test_a_failing_prepare_fails_that_sample_only() -> None:
    async with gated() as (loop, gate):
        first = enter(loop, sample(1))
        await gate.at_gate()
        broken = loop.add(running_task(), failing(KeyError("prompt_mask")), lambda new, before: None, exact=False)
        third = enter(loop, sample(3))
        gate.let_through()
        assert seen(await gate.at_gate()) == [(1, 1), (3, 0)]
        with pytest.raises(KeyError, match="prompt_mask"):
            await broken.result
        await passes(gate, first, third)
        assert (await first.result).done and (await third.result).done


async def test_a_failing_step_fails_its_pass_only() -> None:
    def step(samples: Sequence[Sample]) -> list[Sample]:
        if any(name == 2 and at == 1 for name, at in seen(samples)):
            raise torch.OutOfMemoryError("tried 3 GiB")
        return count(samples)

    async with gated(step) as (loop, gate):
        first = enter(loop, sample(1, frames=2))
        await gate.at_gate()
        beside = [enter(loop, sample(2)), enter(loop, sample(3))]
        await passes(gate, first, *beside)
        assert (await first.result).done
        for entry in beside:
            with pytest.raises(torch.OutOfMemoryError):
                await entry.result
            assert entry.kept is not None and entry.kept.step == 1, "the last finished step can be saved"
            assert entry.sample is None, "and its memory on the device is free"
        late = enter(loop, sample(4))
        await passes(gate, late)
        assert (await late.result).done


async def test_a_sample_that_cannot_go_on_fails_alone() -> None:
    """Nothing of it is kept from then on: what came before may have been wrong already."""

    def step(samples: Sequence[Sample]) -> list[Sample | WorkerError]:
        stepped: list[Sample | WorkerError] = list(count(samples))
        return [
            WorkerError("odd", "no") if at == (2, 1) else new for at, new in zip(seen(samples), stepped, strict=True)
        ]

    async with gated(step) as (loop, gate):
        first = enter(loop, sample(1))
        await gate.at_gate()
        odd, third = enter(loop, sample(2)), enter(loop, sample(3))
        made = await passes(gate, first, odd, third)
        assert (await first.result).done and (await third.result).done
        with pytest.raises(WorkerError, match="no"):
            await odd.result
        assert odd.kept is None and odd.sample is None
    assert made[2] == [(1, 2), (2, 1), (3, 1)] and made[3] == [(3, 2)]


BROKEN = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


async def test_a_device_that_breaks_in_a_pass_is_lost_to_all_and_used_no_more() -> None:
    """Those of the pass are told so; the others have no part in it, nor have those that come too late."""

    def step(samples: Sequence[Sample]) -> list[Sample]:
        if any(name == 2 and at == 1 for name, at in seen(samples)):
            raise BROKEN
        return count(samples)

    async with gated(step) as (loop, gate):
        beside = [enter(loop, sample(2)), enter(loop, sample(3))]
        await gate.at_gate()
        other = enter(loop, sample(1, frames=2))
        gate.let_through()
        while seen(await gate.at_gate(*beside, other))[0] != (2, 1):
            gate.let_through()
        coming = loop.add(running_task(), failing(AssertionError("prepared")), lambda new, before: None, exact=False)
        gate.let_through()
        for entry in beside:
            with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
                await entry.result
        for entry in (other, coming):
            with pytest.raises(TransientError) as caught:
                await entry.result
            assert caught.value.code == "replica_unhealthy"
        assert all(entry.kept is None and entry.sample is None for entry in [*beside, other, coming])
        with pytest.raises(TransientError, match="broke"):
            enter(loop, sample(4))


@pytest.mark.parametrize("where", ["prepare", "after_step"])
async def test_a_device_may_also_break_between_two_passes(where: str) -> None:
    def after_step(new: Sample, before: Sample | None) -> None:
        if where == "after_step" and new.step == 1:
            raise BROKEN

    async with gated() as (loop, gate):
        first = enter(loop, sample(1, frames=2))
        await gate.at_gate()
        prepare = failing(BROKEN) if where == "prepare" else lambda: sample(2)
        culprit = loop.add(running_task(), prepare, after_step, exact=False)
        await passes(gate, first, culprit)
        with pytest.raises(torch.AcceleratorError):
            await culprit.result
        with pytest.raises(TransientError, match="broke"):
            await first.result


class LostTensor(torch.Tensor):
    """Of a device that breaks when it is read."""

    def cpu(self, *args: object, **kwargs: object) -> torch.Tensor:
        raise BROKEN


@pytest.mark.parametrize("how", ["done", "yielded", "memory"])
async def test_latents_that_cannot_be_read_any_more_are_not_waited_for(how: str) -> None:
    def step(samples: Sequence[Sample]) -> list[Sample]:
        if how == "memory":
            raise torch.OutOfMemoryError("tried 3 GiB")
        return count(samples)

    lost = replace(sample(1, steps=1 if how == "done" else 3), latents=sample(1).latents.as_subclass(LostTensor))
    running = running_task()
    async with gated(step) as (loop, gate):
        entry = enter(loop, lost, running)
        await gate.at_gate()
        if how == "yielded":
            running.ask_to_park("make room")
        gate.let_through()
        with pytest.raises(torch.AcceleratorError):
            await entry.result


async def test_a_failing_after_step_fails_that_sample_only() -> None:
    def after_step(new: Sample, before: Sample | None) -> None:
        if new.step == 2:
            raise ZeroDivisionError

    async with gated() as (loop, gate):
        first = enter(loop, sample(1))
        await gate.at_gate()
        broken = enter(loop, sample(2), after_step=after_step)
        made = await passes(gate, first, broken)
        assert (await first.result).done
        with pytest.raises(ZeroDivisionError):
            await broken.result
    assert [name for names in made for name, _ in names].count(2) == 2


async def test_a_sample_that_comes_done_leaves_without_a_step() -> None:
    async with gated() as (loop, gate):
        entry = enter(loop, replace(sample(1), step=3))
        assert await passes(gate, entry) == []
        assert (await entry.result).done


async def test_closing_fails_samples_inside_and_those_that_come_later() -> None:
    async with gated() as (loop, gate):
        inside = enter(loop, sample(1))
        await gate.at_gate()
        coming = enter(loop, sample(2))
        loop.close()
        with pytest.raises(StoppedError, match="closed"):
            enter(loop, sample(3))
        gate.let_through()
        for entry in (inside, coming):
            with pytest.raises(StoppedError, match="closed"):
                await entry.result


async def test_closing_an_idle_loop_ends_its_thread() -> None:
    before = denoising_threads()
    async with gated():
        assert len(denoising_threads() - before) == 1
    assert denoising_threads() <= before


async def test_the_thread_warms_up_first_and_computes_no_gradients() -> None:
    grads: list[tuple[str, bool]] = []

    def note() -> None:
        grads.append((threading.current_thread().name, torch.is_grad_enabled()))

    def step(samples: Sequence[Sample]) -> list[Sample]:
        note()
        return count(samples)

    loop = StepLoop(step, 100, warm_up=note)
    await enter(loop, sample(1, steps=1)).result
    loop.close()
    assert grads == [("denoise", False)] * 2


def test_what_the_warm_up_raises_is_raised_where_the_loop_is_made() -> None:
    before = denoising_threads()
    with pytest.raises(torch.OutOfMemoryError, match="3 GiB"):
        StepLoop(count, 100, warm_up=failing(torch.OutOfMemoryError("tried 3 GiB")))
    for thread in denoising_threads() - before:
        thread.join()


@pytest.fixture
def without_collection() -> Iterator[None]:
    """Memory of a device must not wait for Python to look for cycles, which may be never."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("how", ["done", "stopped", "stopped by after_step", "yielded"])
@pytest.mark.usefixtures("without_collection")
async def test_a_sample_that_left_keeps_no_memory(how: str) -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []
    running = running_task()

    def prepare() -> Sample:
        return sample(1, steps=3)

    def after_step(new: Sample, before: Sample | None) -> None:
        tensors.append(weakref.ref(new.latents))
        if how == "stopped by after_step" and new.step == 2:
            raise StoppedError("cancelled")

    async with gated() as (loop, gate):
        entry = loop.add(running, prepare, after_step, exact=False)
        await gate.at_gate()
        if how == "stopped":
            running.stop()
        elif how == "yielded":
            running.ask_to_park("make room")
        await passes(gate, entry)
        assert (entry.result.exception() is None) == (not how.startswith("stopped"))
        del entry
        # The result is set a moment before the thread is done with the sample.
        await until(lambda: all(ref() is None for ref in tensors))
        assert len(tensors) >= 2


SECOND_FULL = StepRules(reuse_run=1)  # f r f r
THIRD_FULL = StepRules(reuse_run=2)  # f r r f r r


async def test_a_sample_that_is_to_reuse_its_last_step_is_parked_once_it_need_not() -> None:
    """It is stepped on by itself, while the others wait, and no turn of theirs is lost."""
    async with gated() as (loop, gate):
        entry = enter(loop, replace(sample(1, steps=8), rules=THIRD_FULL), victim := running_task())
        await gate.at_gate()
        other = enter(loop, sample(2, steps=8))
        gate.let_through()
        assert seen(await gate.at_gate()) == [(1, 1), (2, 0)]
        victim.ask_to_park("make room")
        gate.let_through()
        assert seen(await gate.at_gate()) == [(1, 2)]
        gate.let_through()
        assert seen([await entry.result]) == [(1, 3)]
        assert seen(await gate.at_gate()) == [(2, 1)]
        await passes(gate, other)


async def test_a_stop_wins_over_a_park_that_waits() -> None:
    async with gated() as (loop, gate):
        entry = enter(loop, replace(sample(1, steps=8), rules=THIRD_FULL), victim := running_task())
        await gate.at_gate()
        gate.let_through()
        await gate.at_gate()
        victim.ask_to_park("make room")
        gate.let_through()
        await gate.at_gate()
        victim.stop()
        gate.let_through()
        with pytest.raises(StoppedError):
            await entry.result


async def test_the_last_resumable_sample_is_at_hand() -> None:
    """It is what a pass that fails leaves; what the blocks added does not lie in it, and costs no memory."""
    kept = (torch.zeros(1),)

    def step(samples: Sequence[Sample]) -> list[Sample]:
        if samples[0].step == 5:
            raise torch.OutOfMemoryError("tried 3 GiB")
        return [replace(each, residual=None if each.resumable else kept) for each in count(samples)]

    at_hand: list[tuple[int, int]] = []
    async with gated(step) as (loop, gate):
        entry = enter(loop, replace(sample(1, steps=6), rules=THIRD_FULL))
        while await gate.at_gate(entry):
            assert entry.sample is not None and entry.resumable is not None
            assert entry.resumable.residual is None
            at_hand.append((entry.sample.step, entry.resumable.step))
            gate.let_through()
        with pytest.raises(torch.OutOfMemoryError):
            await entry.result
    assert at_hand == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3)]
    assert entry.kept is not None and entry.kept.step == 3


async def test_rows_of_a_pass_follow_the_step() -> None:
    """Two guided samples are too many for a pass; once their guidance has ended they share it."""
    unguided_later = StepRules(guidance_until=0.02)  # of four steps: g g - -
    async with gated(max_tokens=2 * TOKENS_OF_SAMPLE) as (loop, gate):
        before = enter(loop, sample(0, steps=1))
        await gate.at_gate()
        both = [enter(loop, replace(guided(name, steps=4), rules=unguided_later)) for name in (1, 2)]
        made = await passes(gate, before, *both)
    assert made[1:] == [[(1, 0)], [(2, 0)], [(1, 1)], [(2, 1)], [(1, 2), (2, 2)], [(1, 3), (2, 3)]]


def test_a_step_that_reuses_the_blocks_pays_for_the_first_one() -> None:
    cached = replace(guided(1), blocks=6, rules=SECOND_FULL)
    in_full, reuses = cached, replace(cached, step=1)
    assert shares(70, [in_full, reuses]) == [60, 10]
    unguided = replace(sample(2), blocks=6)
    assert shares(80, [reuses, unguided]) == [20, 60]


def guided(name: int, steps: int = 3, frames: int = 1) -> Sample:
    return replace(sample(name, steps, frames), guidance_scale=2.0)


@given(st.integers(0, 10**13), st.lists(st.sampled_from((1.0, 2.0)), min_size=1, max_size=12))
def test_the_shares_of_a_pass_are_its_time_exactly(nanoseconds: int, scales: list[float]) -> None:
    samples = [replace(sample(1), guidance_scale=scale) for scale in scales]
    paid = shares(nanoseconds, samples)
    assert sum(paid) == nanoseconds
    for share, each in zip(paid, samples, strict=True):
        assert abs(share - nanoseconds * each.cfg_rows / sum(s.cfg_rows for s in samples)) <= 1 + nanoseconds * 1e-15


async def test_each_sample_pays_its_part_of_the_passes_it_was_in() -> None:
    """Alone, then beside a guided one that counts twice, then the guided one alone."""
    clock, took = Clock(), iter((1_000_000_000, 900_000_000, 600_000_001))

    def step(samples: Sequence[Sample]) -> list[Sample]:
        clock.advance(next(took))
        return count(samples)

    one, two = running_task(), running_task()
    async with gated(step, now_ns=clock) as (loop, gate):
        first = enter(loop, sample(1, steps=2), one)
        await gate.at_gate()
        second = enter(loop, guided(2, steps=2), two)
        gate.let_through()
        made = await passes(gate, first, second)
    assert [sorted(name for name, _ in names) for names in made] == [[1, 2], [2]]
    assert one.device_s + two.device_s == 2.500000001
    assert two.device_s == 1.200000001


async def test_the_progress_of_a_step_has_its_time_in_it() -> None:
    clock, running = Clock(), running_task()

    def step(samples: Sequence[Sample]) -> list[Sample]:
        clock.advance(250_000_000)
        return count(samples)

    reported: list[float] = []

    def after_step(new: Sample, before: Sample | None) -> None:
        running.progress(new.step, new.num_steps)
        assert running.latest is not None
        reported.append(running.latest.device_s)

    async with gated(step, now_ns=clock) as (loop, gate):
        await passes(gate, enter(loop, sample(1), running, after_step))
    assert reported == [0, 0.25, 0.5, 0.75]


async def test_a_pass_that_fails_is_paid_for_too() -> None:
    clock, running = Clock(), running_task()

    def step(samples: Sequence[Sample]) -> list[Sample]:
        clock.advance(3_000_000_000)
        raise torch.OutOfMemoryError("tried 3 GiB")

    async with gated(step, now_ns=clock) as (loop, gate):
        await passes(gate, entry := enter(loop, sample(1), running))
        assert isinstance(entry.result.exception(), torch.OutOfMemoryError)
    assert running.device_s == 3


async def test_what_is_done_for_one_sample_has_the_ids_of_its_job_on_the_thread() -> None:
    async def enter_as(job: str, loop: StepLoop, name: int) -> LoopEntry:
        def prepare() -> Sample:
            on_thread.append((job, current_ids().job))
            return sample(name, steps=1)

        def after_step(_: Sample, __: Sample | None) -> None:
            on_thread.append((job, current_ids().job))

        with log_ids(job=job):
            return loop.add(running_task(), prepare, after_step, False)

    on_thread: list[tuple[str, str | None]] = []
    async with gated() as (loop, gate):
        entries = [await enter_as(f"video_{n}", loop, n) for n in range(2)]
        await passes(gate, *entries)
    assert len(on_thread) == 6 and all(own == seen for own, seen in on_thread)
