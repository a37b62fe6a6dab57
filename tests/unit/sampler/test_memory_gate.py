"""Which samples may be on the device together."""

import asyncio

import pytest

from deployments.errors import PermanentError, StoppedError
from deployments.sampler.memory_gate import MemoryGate
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint
from tests.support.workers.fakes import running_task

PROFILE = MemoryProfile(
    step_token_bytes=100, step_row_bytes=0, held_token_bytes=10, held_row_bytes=0, table_token_bytes=0
)
SAMPLE = SampleFootprint((12, 5, 8, 8))


def budget(samples: int) -> int:
    return PROFILE.needed([SAMPLE] * samples)


async def test_as_many_as_fit_get_memory_and_the_next_waits_for_a_release() -> None:
    gate = MemoryGate(PROFILE, budget(2))
    tasks = [running_task(f"video_{n}") for n in range(3)]
    assert await gate.reserve(tasks[0], SAMPLE)
    assert await gate.reserve(tasks[1], SAMPLE)
    waiting = asyncio.create_task(gate.reserve(tasks[2], SAMPLE))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    gate.release(tasks[0])
    assert await waiting


async def test_a_task_that_waits_heeds_stop_and_park() -> None:
    gate = MemoryGate(PROFILE, budget(1))
    first, second, third = (running_task(f"video_{n}") for n in range(3))
    assert await gate.reserve(first, SAMPLE)
    second.ask_to_park("room for another")
    assert not await gate.reserve(second, SAMPLE)
    third.stop()
    with pytest.raises(StoppedError):
        await gate.reserve(third, SAMPLE)


async def test_what_never_fits_is_refused_for_good() -> None:
    gate = MemoryGate(PROFILE, budget(1) - 1)
    with pytest.raises(PermanentError, match="80 tokens; 79 fit") as caught:
        await gate.reserve(running_task(), SAMPLE)
    assert caught.value.code == "too_large"
    assert gate.max_tokens == 79
