"""Loops in the background."""

import asyncio
import logging

import pytest

from deployments.background import keep_running

log = logging.getLogger("tests.background")


async def test_a_loop_that_ends_by_a_fault_is_told_and_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    begun = 0

    async def run() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise KeyError("the fault")

    with caplog.at_level(logging.ERROR, log.name):
        await keep_running(run, "a loop", log, retry_s=0)
    assert begun == 3
    assert [record.getMessage() for record in caplog.records] == ["a loop: ended by a fault, begun again in 0 s"] * 2
    assert all(record.exc_info is not None and record.exc_info[0] is KeyError for record in caplog.records)


async def test_a_loop_that_is_cancelled_ends() -> None:
    waiting = asyncio.Event()

    async def run() -> None:
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(keep_running(run, "a loop", log))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
