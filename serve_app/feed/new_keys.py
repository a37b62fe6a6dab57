"""API keys that were made a moment ago: an ingress replica asks for those that the feed has not brought yet."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from deployments.background import wait_for
from deployments.errors import RegistryUnavailableError
from serve_app.access.tenants import AccessTable
from serve_app.jobs import Job, JobFilter, JobPage, Move, Order


@dataclass(frozen=True, slots=True)
class LookUpBounds:
    """What keys that nobody made may cost."""

    every_s: float = 0.25  # between the beginnings of two look-ups of a replica
    answer_s: float = 2.0  # a look-up may take so long
    refused_s: float = 1.0  # a key that was looked up in vain is not looked up again for so long
    max_refused: int = 1000  # so many of those are remembered
    max_waiting: int = 64  # so many requests may wait for a look-up; more are answered by what is known


class AccessSource(Protocol):
    """What is asked; `serve_app.registry_api.RegistryApi` is one."""

    async def refresh_access(self) -> int: ...


class AccessFeed(Protocol):
    """What brings the tenants and keys; `serve_app.feed.follower.FeedFollower` is one."""

    async def access(self, version: int | None = None) -> AccessTable: ...


class JobFeed(AccessFeed, Protocol):
    """What answers reads of jobs, as far as it knows them; where it is not valid, nobody is told of changes."""

    shutting_down: bool

    async def run(self) -> None: ...

    @property
    def valid(self) -> bool: ...

    def get(self, job_id: str) -> Job | None: ...

    def moves(self, job_id: str) -> tuple[Move, ...] | None: ...

    def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage | None: ...

    def watch(self, job_id: str) -> AbstractContextManager[asyncio.Event]: ...

    def begin_shutdown(self) -> None: ...


async def wait_for_access(
    newest: Callable[[], AccessTable | None], renewed: asyncio.Event, version: int | None, timeout_s: float
) -> AccessTable:
    """The newest tenants and keys, as soon as there are any, of this version or a newer one.

    Args:
        renewed: is set whenever there are newer ones.

    Raises:
        RegistryUnavailableError: there were none in time.
    """
    give_up_at = time.monotonic() + timeout_s
    while (table := newest()) is None or (version is not None and table.version < version):
        renewed.clear()
        if not await wait_for(renewed, give_up_at - time.monotonic()):
            raise RegistryUnavailableError(
                "the job registry has not told yet who may do what; try again in a few seconds"
            )
    return table


class NewKeys:
    """Finds the tenants and keys among which a request's key is, if it is a key at all.

    A look-up tells the version of all keys, and so serves every request that came before it began. However many
    unknown keys come, the registry is asked once in `every_s`.
    """

    def __init__(self, registry: AccessSource, feed: AccessFeed, bounds: LookUpBounds = LookUpBounds()) -> None:
        self._registry = registry
        self._feed = feed
        self._bounds = bounds
        self._waiting = 0
        self._one_at_a_time = asyncio.Lock()
        self._next_at = 0.0  # no look-up begins before
        self._looked_at = 0.0  # when the last one began that has an outcome
        self._outcome: int | RegistryUnavailableError = 0
        self._refused: OrderedDict[str, float] = OrderedDict()  # hash of a key: until when, the soonest first

    async def table_for(self, hashed: str) -> AccessTable:
        """The tenants and keys as they are known here; asked for anew if the key of this hash is not among them.

        Raises:
            RegistryUnavailableError: they could not be asked for, so nobody can say whether the key is a new one.
        """
        table = await self._feed.access()
        lately = self._refused.get(hashed, 0.0) > time.monotonic()
        if hashed in table.keys or lately or self._waiting >= self._bounds.max_waiting:
            return table
        self._waiting += 1
        try:
            table = await self._feed.access(await self._look_up())
        finally:
            self._waiting -= 1
        if hashed not in table.keys:
            self._remember(hashed)
        return table

    async def _look_up(self) -> int:
        """The version of the tenants and keys at a moment after the call. Raises RegistryUnavailableError."""
        asked_at = time.monotonic()
        async with self._one_at_a_time:
            if self._looked_at < asked_at:
                await asyncio.sleep(self._next_at - time.monotonic())
                begun_at = time.monotonic()
                self._next_at = begun_at + self._bounds.every_s
                self._outcome = await self._ask()
                self._looked_at = begun_at
        if isinstance(self._outcome, RegistryUnavailableError):
            raise self._outcome
        return self._outcome

    async def _ask(self) -> int | RegistryUnavailableError:
        """An error is an outcome too: those who wait are not to try one after the other."""
        try:
            async with asyncio.timeout(self._bounds.answer_s):
                return await self._registry.refresh_access()
        except TimeoutError:
            return RegistryUnavailableError(
                "the job registry does not say now whether this API key is a new one; try again in a few seconds"
            )
        except RegistryUnavailableError as error:
            return error

    def _remember(self, hashed: str) -> None:
        self._refused[hashed] = time.monotonic() + self._bounds.refused_s
        self._refused.move_to_end(hashed)
        if len(self._refused) > self._bounds.max_refused:
            self._refused.popitem(last=False)
