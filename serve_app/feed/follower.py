"""Follows the registry: one long poll for each ingress replica, from which all reads of its clients are answered."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import uuid4

from deployments.errors import RegistryUnavailableError
from serve_app.access.tenants import AccessTable
from serve_app.feed.job_cache import JobCache
from serve_app.feed.publisher import VALID_S, Batch, Cursor
from serve_app.jobs import Job, JobFilter, JobPage, Move, Order

log = logging.getLogger("ray.serve")

# As long as a call of the registry may take.
FIRST_WORD_S = 15.0


class Follows(Protocol):
    """Whom the jobs are followed at; `serve_app.registry_api.RegistryApi`."""

    async def follow(self, follower: str, cursor: Cursor) -> Batch: ...


class FeedFollower:
    """The mirror of the jobs and whether it may be believed: for `VALID_S` seconds from when the last poll was sent.

    What is asked while it may not be, or what it does not know, is None: then the registry is to be asked.
    """

    def __init__(self, registry: Follows) -> None:
        self._registry = registry
        self._name = uuid4().hex
        self._jobs = JobCache()
        self._valid_until = 0.0
        self._applied = asyncio.Event()
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.shutting_down = False

    async def run(self) -> None:
        """Follow for ever; a registry that is away is there again later."""
        while True:
            asked_at = time.monotonic()
            try:
                batch = await self._registry.follow(self._name, self._jobs.cursor)
                changed = self._jobs.apply(batch)
            except RegistryUnavailableError as error:
                log.warning(f"the feed of the jobs is interrupted; reads ask the registry: {error}")
                continue
            except Exception:  # the outermost loop: without it, keys that are revoked would be heard of no more
                log.exception("the feed of the jobs is interrupted; it begins anew in a second")
                self._jobs, self._valid_until = JobCache(access=self._jobs.access), 0.0
                await asyncio.sleep(1)
                continue
            self._valid_until = asked_at + VALID_S
            self._applied.set()
            self._wake(changed & self._watchers.keys())

    def begin_shutdown(self) -> None:
        """This replica is to end: whoever watches a job is woken and told so by `shutting_down`."""
        self.shutting_down = True
        self._wake(self._watchers)

    def _wake(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            for watcher in self._watchers[job_id]:
                watcher.set()

    @property
    def watched(self) -> frozenset[str]:
        """The ids of the jobs that somebody watches."""
        return frozenset(self._watchers)

    @property
    def valid(self) -> bool:
        return self._jobs.complete and time.monotonic() < self._valid_until

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id) if self.valid else None

    def moves(self, job_id: str) -> tuple[Move, ...] | None:
        return self._jobs.moves(job_id) if self.valid else None

    def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage | None:
        return self._jobs.page(limit, after, order, wanted) if self.valid else None

    async def access(self) -> AccessTable:
        """Tenants and keys as last heard of; waits for the first word of the registry.

        Raises:
            RegistryUnavailableError: it has not said one, and does not for a while.
        """
        if self._jobs.access is None:
            await self._first_word()
        assert self._jobs.access is not None
        return self._jobs.access

    async def _first_word(self) -> None:
        try:
            async with asyncio.timeout(FIRST_WORD_S):
                while self._jobs.access is None:
                    self._applied.clear()
                    await self._applied.wait()
        except TimeoutError:
            told = "the job registry has not told yet who may do what; try again in a few seconds"
            raise RegistryUnavailableError(told) from None

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job is another; whoever waits for it clears it."""
        watcher = asyncio.Event()
        self._watchers[job_id].add(watcher)
        try:
            yield watcher
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id]
