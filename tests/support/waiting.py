"""How tests wait: for a condition, with a bound that only what will never come reaches; beside a loop; for an end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil

# A busy machine takes many times as long as an idle one.
PATIENCE_S = 300.0


async def until(condition: Callable[[], object]) -> None:
    """Wait for the condition while the event loop goes on."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


def wait_until(
    condition: Callable[[], object],
    told: Callable[[], object] = str,
    patience_s: float = PATIENCE_S,
    every_s: float = 0.01,
) -> None:
    """Wait for the condition, looked at so often. Raises AssertionError with what `told` returns."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(every_s)


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs it inside, and cancels it at the end. It must not have ended by itself."""
    task = asyncio.create_task(loop)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def gone(pids: Iterable[int]) -> bool:
    """Whether all of these processes end; looks again until they do or patience is over."""
    deadline = time.monotonic() + PATIENCE_S
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not collected yet does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
