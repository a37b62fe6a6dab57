"""Tenants and keys for an HTTP side that has nothing to do with jobs: a long poll of the registry for them alone.

Where jobs are read too, `follower.FeedFollower` brings both. A follower of jobs holds up what is written until it has
taken it in, which one that only checks keys has no reason to do.
"""

import asyncio
import logging
from typing import Protocol

from deployments.background import run_forever
from serve_app.access.tenants import NO_TENANTS, AccessTable
from serve_app.feed.new_keys import AccessFeed, wait_for_access
from serve_app.feed.read_leases import FeedTiming

log = logging.getLogger("ray.serve")


class AccessPublisher(Protocol):
    """What is polled; `serve_app.registry_api.RegistryApi` is one."""

    async def poll_access(self, version: int) -> AccessTable | None: ...


class AccessFollower(AccessFeed):
    """The tenants and keys of an HTTP replica."""

    def __init__(self, registry: AccessPublisher, timing: FeedTiming = FeedTiming()) -> None:
        self._registry = registry
        self._timing = timing
        self._table: AccessTable | None = None
        self._renewed = asyncio.Event()

    async def run(self) -> None:
        """Poll for ever."""
        await run_forever(self._poll, "following the tenants and keys", log, self._timing.retry_s)

    async def _poll(self) -> float:
        """Returns the pause until the next poll: none, as the registry holds a poll until it has news."""
        known = NO_TENANTS.version if self._table is None else self._table.version
        table = await self._registry.poll_access(known)
        if table is not None:
            self._table = table
            self._renewed.set()
        return 0.0

    async def access(self, version: int | None = None) -> AccessTable:
        """Tenants and keys by the last poll; waits for the first one.

        Args:
            version: waits for this one or a newer one.

        Raises:
            RegistryUnavailableError: there was none, and there is none for a while.
        """
        return await wait_for_access(lambda: self._table, self._renewed, version, self._timing.first_batch_s)
