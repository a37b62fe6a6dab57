"""Tenants and keys for an HTTP side that reads few jobs or none: a long poll of the registry for them alone.

Where jobs are read all the time, `follower.FeedFollower` brings both. A follower of jobs holds up what is written until
it has taken it in, which is too much for one that checks keys and is asked for a job now and then: what is read of jobs
here is asked of the registry.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from deployments.background import run_forever
from serve_app.access.tenants import NO_TENANTS, AccessTable
from serve_app.feed.new_keys import AccessFeed, wait_for_access
from serve_app.feed.read_leases import FeedTiming
from serve_app.jobs import Job, JobFilter, JobPage, Move, Order

log = logging.getLogger("ray.serve")


class AccessPublisher(Protocol):
    """What is polled; `serve_app.registry_api.RegistryApi` is one."""

    async def poll_access(self, version: int) -> AccessTable | None: ...


class AccessFollower(AccessFeed):
    """The tenants and keys of an HTTP replica, in the place of a feed of jobs: of these it knows none."""

    valid = False

    def __init__(self, registry: AccessPublisher, timing: FeedTiming = FeedTiming()) -> None:
        self.shutting_down = False
        self._watchers: set[asyncio.Event] = set()
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

    def get(self, job_id: str) -> Job | None:
        return None

    def moves(self, job_id: str) -> tuple[Move, ...] | None:
        return None

    def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage | None:
        return None

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when this replica is to end; of the job it tells nothing."""
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def begin_shutdown(self) -> None:
        """Wake everyone who watches a job: this replica ends, and `shutting_down` says so."""
        self.shutting_down = True
        for watcher in self._watchers:
            watcher.set()

    async def access(self, version: int | None = None) -> AccessTable:
        """Tenants and keys by the last poll; waits for the first one.

        Args:
            version: waits for this one or a newer one.

        Raises:
            RegistryUnavailableError: there was none, and there is none for a while.
        """
        return await wait_for_access(lambda: self._table, self._renewed, version, self._timing.first_batch_s)
