"""Who may be in residence beside whom."""

import asyncio

import pytest

from deployments.errors import PermanentError, StoppedError
from deployments.sampler.memory_gate import MemoryGate
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint
from tests.support.worker_fakes import running_task

PROFILE = MemoryProfile(
    step_token_bytes=100, step_row_bytes=0, held_token_bytes=10, held_row_bytes=0, table_token_bytes=0
)
SAMPLE = SampleFootprint((12, 5, 8, 8))


def budget(samples: int) -> int:
    return PROFILE.needed([SAMPLE] * samples)


async def test_as_many_as_fit_come_in_and_the_next_waits_for_one_to_leave() -> None:
    admission = MemoryGate(PROFILE, budget(2))
    tasks = [running_task(f"video_{n}") for n in range(3)]
    assert await admission.enter(tasks[0], SAMPLE)
    assert await admission.enter(tasks[1], SAMPLE)
    waiting = asyncio.create_task(admission.enter(tasks[2], SAMPLE))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    admission.leave(tasks[0])
    assert await waiting


async def test_who_waits_heeds_stop_and_yield() -> None:
    admission = MemoryGate(PROFILE, budget(1))
    first, second, third = (running_task(f"video_{n}") for n in range(3))
    assert await admission.enter(first, SAMPLE)
    second.ask_to_park("room for another")
    assert not await admission.enter(second, SAMPLE)
    third.stop()
    with pytest.raises(StoppedError):
        await admission.enter(third, SAMPLE)


async def test_what_never_fits_is_refused_for_good() -> None:
    admission = MemoryGate(PROFILE, budget(1) - 1)
    with pytest.raises(PermanentError, match="80 tokens; 79 fit") as caught:
        await admission.enter(running_task(), SAMPLE)
    assert caught.value.code == "too_large"
    assert admission.max_tokens == 79
