"""How a process's counts come to the registry: all of them, every few seconds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from deployments.errors import RegistryUnavailableError
from deployments.metrics.ray_page import RayPage
from deployments.metrics.recorder import PUSH_EVERY_S, RECORDER, Recorder, Snapshot

log = logging.getLogger("ray.serve")


async def push_forever(
    push: Callable[[Snapshot], Awaitable[None]],
    role: str,
    *,
    look: Callable[[], None] = lambda: None,
    recorder: Recorder = RECORDER,
    every_s: float = PUSH_EVERY_S,
) -> None:
    """Send snapshots for ever, and tell Ray the same. A registry that is away gets the next one, which holds all.

    Args:
        push: sends one to the registry.
        role: of this process, for people.
        look: called before each, to set gauges.
        recorder: whose.
        every_s: between two.
    """
    ray_page = RayPage()
    while True:
        await asyncio.sleep(every_s)
        look()
        snapshot = recorder.snapshot(role)
        await asyncio.to_thread(ray_page.tell, snapshot.values)
        try:
            await push(snapshot)
        except RegistryUnavailableError as error:
            log.debug(f"metrics: the registry was not reached, the next snapshot follows: {error}")
