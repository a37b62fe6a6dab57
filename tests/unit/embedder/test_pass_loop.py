"""Groups share passes in the order in which they came; each bears its own error only."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.embedder.pass_loop import PassLoop
from deployments.errors import DeviceBrokenError, PermanentError
from deployments.proteins.queries import Answer, Query
from tests.support.waiting import until

BAD, LOST = 7, 8  # tokens that fail


def query(length: int, token: int = 5) -> Query:
    """Of `length` tokens."""
    return Query(bytes([0, *[token] * (length - 2), 2]))


class Model:
    """Answers nothing, and remembers the tokens of each query of each pass."""

    def __init__(self, holds: int = 10_000) -> None:
        self.holds = holds  # tokens
        self.passes: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, queries: Sequence[Query]) -> list[Answer]:
        self.gate.wait()
        self.passes.append([len(one.tokens) for one in queries])
        if sum(self.passes[-1]) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(BAD in one.tokens for one in queries):
            raise ValueError("a bad query")
        if any(LOST in one.tokens for one in queries):
            raise DeviceBrokenError("an illegal memory access")
        return [Answer() for _ in queries]


async def busy(model: Model, loop: PassLoop) -> "asyncio.Task[object]":
    """Another group computes until the model's gate is opened."""
    model.gate.clear()
    task: asyncio.Task[object] = asyncio.create_task(loop.answer((query(10),)))
    await until(lambda: loop.pass_s > 0)
    return task


async def test_what_comes_meanwhile_shares_the_next_passes_in_its_order() -> None:
    model = Model()
    loop = PassLoop(model.run, max_tokens=100)
    first = await busy(model, loop)
    groups = [(query(60),), (query(30), query(10)), (query(500),), (query(20),), (query(90),)]
    tasks = [asyncio.create_task(loop.answer(group)) for group in groups]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, *tasks)
    # The long one waits for what came before it, and the short one behind it does not overtake it.
    assert model.passes == [[10], [60, 30, 10], [500], [20], [90]]
    assert loop.pass_s == 0


async def test_seconds_are_shared_out_by_tokens() -> None:
    model = Model()
    loop = PassLoop(model.run, max_tokens=100)
    first = await busy(model, loop)
    small, large = asyncio.create_task(loop.answer((query(20),))), asyncio.create_task(loop.answer((query(60),)))
    await asyncio.sleep(0)
    model.gate.set()
    await first
    (_, small_s), (_, large_s) = await asyncio.gather(small, large)
    assert large_s == pytest.approx(3 * small_s) and small_s > 0


async def test_a_group_bears_its_own_error_only() -> None:
    model = Model()
    loop = PassLoop(model.run, max_tokens=1_000)
    first = await busy(model, loop)
    good, bad, also = (asyncio.create_task(loop.answer((query(20, token),))) for token in (5, BAD, 6))
    await asyncio.sleep(0)
    model.gate.set()
    await first
    assert len((await good)[0]) == len((await also)[0]) == 1
    with pytest.raises(ValueError, match="a bad query"):
        await bad
    assert model.passes == [[10], [20, 20, 20], [20], [20], [20]]


async def test_a_broken_device_is_tried_no_more_for_each() -> None:
    model = Model()
    loop = PassLoop(model.run, max_tokens=1_000)
    first = await busy(model, loop)
    tasks = [asyncio.create_task(loop.answer((query(20, token),))) for token in (5, LOST)]
    await asyncio.sleep(0)
    model.gate.set()
    await first
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [DeviceBrokenError, DeviceBrokenError]
    assert model.passes == [[10], [20, 20]]


async def test_what_memory_does_not_hold_is_halved_and_one_that_alone_is_too_much_is_refused() -> None:
    freed = []
    model = Model(holds=50)
    loop = PassLoop(model.run, max_tokens=1_000, free_memory=lambda: freed.append(True))
    answers, _ = await loop.answer(tuple(query(n) for n in (30, 20, 10, 40)))
    assert len(answers) == 4
    assert model.passes == [[30, 20, 10, 40], [30, 20], [10, 40]] and len(freed) == 1
    first = await busy(model, loop)
    fits, not_at_all = asyncio.create_task(loop.answer((query(50),))), asyncio.create_task(loop.answer((query(51),)))
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, fits)
    with pytest.raises(PermanentError, match="a sequence of 49 residues") as caught:
        await not_at_all
    assert caught.value.code == "too_large_for_device"


async def test_a_client_that_goes_away_is_not_computed() -> None:
    model = Model()
    loop = PassLoop(model.run, max_tokens=100)
    first = await busy(model, loop)
    gone, stays = asyncio.create_task(loop.answer((query(20),))), asyncio.create_task(loop.answer((query(30),)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, stays)
    assert model.passes == [[10], [30]]


@given(st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=4), min_size=1, max_size=12))
@settings(max_examples=40)
def test_every_query_is_computed_once_and_no_pass_is_larger_than_it_may_be(groups: list[list[int]]) -> None:
    async def play() -> list[list[int]]:
        model = Model()
        loop = PassLoop(model.run, max_tokens=100)
        await asyncio.gather(*(loop.answer(tuple(query(n) for n in group)) for group in groups))
        return model.passes

    passes = asyncio.run(play())
    assert [n for one in passes for n in one] == [n for group in groups for n in group]
    for one in passes:
        assert sum(one) <= 100 or one in groups
