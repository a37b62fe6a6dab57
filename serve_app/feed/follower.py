"""An ingress replica's side of the feed: a long poll of the registry, and reads answered from it."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import uuid4

from deployments.background import run_forever
from deployments.errors import RegistryUnavailableError
from serve_app.access.tenants import AccessTable
from serve_app.feed.job_cache import JobCache
from serve_app.feed.new_keys import wait_for_access
from serve_app.feed.publisher import Batch, Cursor
from serve_app.feed.read_leases import FeedTiming
from serve_app.jobs import Job, JobFilter, JobPage, Move, Order

log = logging.getLogger("ray.serve")


class FeedSource(Protocol):
    """What a follower polls; `serve_app.registry_api.RegistryApi` is one."""

    async def poll_feed(self, follower: str, cursor: Cursor) -> Batch: ...


class FeedFollower:
    """Answers reads from a cache of the jobs, for `valid_s` from when it sent the last poll.

    Without a lease, and for what the cache does not know, the answer is None: then the registry
    must be asked.
    """

    def __init__(self, registry: FeedSource, timing: FeedTiming = FeedTiming()) -> None:
        self.name = uuid4().hex
        self.shutting_down = False
        self._registry = registry
        self._timing = timing
        self._jobs = JobCache()
        self._valid_until = 0.0
        self._batch_applied = asyncio.Event()
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)  # by job id

    async def run(self) -> None:
        """Poll for ever."""
        await run_forever(self._poll, "following the feed of the jobs", log, self._timing.retry_s)

    async def _poll(self) -> float:
        """Returns the pause until the next poll: none, as the registry holds a poll until it has news."""
        sent_at = time.monotonic()
        try:
            batch = await self._registry.poll_feed(self.name, self._jobs.cursor)
            changed = self._jobs.apply(batch)
        except RegistryUnavailableError:
            raise  # reads ask the registry when the lease has ended; the cache can be brought up to date later
        except Exception:
            # A cache with half a batch in it must not be read again. It begins anew, but for the
            # tenants and keys: without them nobody would be let in.
            self._jobs = JobCache(access=self._jobs.access)
            self._valid_until = 0.0
            raise
        self._valid_until = sent_at + self._timing.valid_s
        self._batch_applied.set()
        # Whoever watches a job may do so no longer when the keys have changed.
        self._wake(changed & self._watchers.keys() if batch.access is None else self._watchers)
        return 0.0

    def begin_shutdown(self) -> None:
        """Wake everyone who watches a job: this replica ends, and `shutting_down` says so."""
        self.shutting_down = True
        self._wake(self._watchers)

    def _wake(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            for watcher in self._watchers[job_id]:
                watcher.set()

    @property
    def valid(self) -> bool:
        """Whether reads are answered from the cache now."""
        return self._jobs.complete and time.monotonic() < self._valid_until

    @property
    def lag_s(self) -> float:
        """Seconds since the newest poll was sent that was answered; 0 before the first one."""
        return max(0.0, time.monotonic() - self._valid_until + self._timing.valid_s) if self._valid_until else 0.0

    @property
    def watched_jobs(self) -> frozenset[str]:
        """Ids of the jobs that somebody watches."""
        return frozenset(self._watchers)

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id) if self.valid else None

    def moves(self, job_id: str) -> tuple[Move, ...] | None:
        return self._jobs.moves(job_id) if self.valid else None

    def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage | None:
        return self._jobs.page(limit, after, order, wanted) if self.valid else None

    async def access(self, version: int | None = None) -> AccessTable:
        """Tenants and keys by the last batch; waits for the first one.

        Args:
            version: waits for a batch with this one or a newer one.

        Raises:
            RegistryUnavailableError: there was none, and there is none for a while.
        """
        return await wait_for_access(
            lambda: self._jobs.access, self._batch_applied, version, self._timing.first_batch_s
        )

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job or the keys have changed; whoever waits for it clears it."""
        watcher = asyncio.Event()
        self._watchers[job_id].add(watcher)
        try:
            yield watcher
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id]
