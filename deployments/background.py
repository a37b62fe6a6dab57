"""What loops in the background have in common: to wait for an event, and to go on for ever. Pure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from deployments.errors import MochiServeError


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Until the event is set or the time is over; whether it is set.

    `asyncio.wait_for` may swallow a cancellation in Python 3.11.
    """
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def run_forever(
    work: Callable[[], Awaitable[float]], name: str, log: logging.Logger, retry_s: float = 1.0
) -> None:
    """Do `work` again and again; a defect in it, or what it needs being away, must not end the loop.

    Args:
        work: returns the seconds until the next round.
        name: of the loop, for the log.
        log: where failures go; a foreseen one as a line, any other with its traceback.
        retry_s: seconds until the next round after a failure.
    """
    while True:
        try:
            pause_s = await work()
        except MochiServeError as error:
            log.warning(f"{name}: not possible now, tried again in {retry_s:g} s: {error}")
            pause_s = retry_s
        except Exception:
            log.exception(f"{name}: failed, tried again in {retry_s:g} s")
            pause_s = retry_s
        await asyncio.sleep(pause_s)


async def keep_running(
    run: Callable[[], Awaitable[None]], name: str, log: logging.Logger, retry_s: float = 1.0
) -> None:
    """Begin `run`, a loop of its own, again and again until it returns: a task of it would die without a word.

    Args:
        run: returns when it is to end.
        name: of the loop, for the log.
        log: where failures go, with their tracebacks.
        retry_s: seconds until it begins again.
    """
    while True:
        try:
            return await run()
        except Exception:
            log.exception(f"{name}: ended by a fault, begun again in {retry_s:g} s")
        await asyncio.sleep(retry_s)
