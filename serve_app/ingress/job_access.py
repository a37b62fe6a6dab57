"""Jobs of one kind as a caller may see and end them: by the registry's feed, or by the registry."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from deployments.background import wait_for
from deployments.logs.ids import add_log_ids
from deployments.messages import JobKind
from deployments.storage.object_store import Bucket
from serve_app.access.exposure import keys_needed
from serve_app.access.tenants import AccessTable, Caller, tenant_of_key
from serve_app.config import AppSettings
from serve_app.errors import InvalidRequestError, NotFoundError, UnknownJobError, VideoFinalError, quote
from serve_app.feed.new_keys import JobFeed, NewKeys
from serve_app.jobs import Expiry, Job, JobFilter, JobPage, JobState, Move, Order, expires_at
from serve_app.registry_api import RegistryApi

# nginx answers 504 when it has heard nothing for 60 s (proxy_read_timeout), and so do load balancers.
LONGEST_WAIT_S = 50.0


@dataclass(frozen=True, slots=True)
class Timing:
    """How long an ingress replica waits for what."""

    look_again_s: float = 1.0  # between two looks at a job while the registry's feed is interrupted
    heartbeat_s: float = 10.0  # of silence, after which a stream of events sends a comment
    longest_wait_s: float = LONGEST_WAIT_S  # until a request that waits for a video is answered, whatever it asks for


@dataclass
class JobAccess:
    """What the routes of an app ask and do about its jobs. Built once in each of its replicas."""

    kind: ClassVar[JobKind]
    noun: ClassVar[str]  # what a job is to clients
    param: ClassVar[str]  # the name of its id in their requests

    settings: AppSettings
    registry: RegistryApi
    store: Bucket  # of the results
    feed: JobFeed  # of the same registry
    timing: Timing = field(default=Timing(), kw_only=True)
    unix_time: Callable[[], float] = field(default=time.time, kw_only=True)  # the wall clock
    new_keys: NewKeys = field(init=False)

    def __post_init__(self) -> None:
        self.new_keys = NewKeys(self.registry, self.feed)

    @property
    def keys_needed(self) -> bool:
        return keys_needed(self.settings.access.mode)

    async def table_for(self, hashed: str) -> AccessTable:
        """Tenants and keys as the registry last sent them; it is asked for those that it has not sent yet if the key
        of this hash is not among them."""
        return await self.new_keys.table_for(hashed)

    async def check_key(self, caller: Caller) -> float | None:
        """Whether the caller may still be answered, in the middle of an answer that goes on for long.

        Returns:
            The seconds until the caller's key expires, None if it does not.

        Raises:
            UnauthenticatedError: the key has been revoked or has expired, or its tenant was removed.
        """
        if caller.key_hash is None:
            return None
        now, table = self.unix_time(), await self.feed.access()
        tenant_of_key(table, caller.key_hash, now)
        expires_at = table.keys[caller.key_hash].expires_at
        return None if expires_at is None else expires_at - now

    def link_s(self, job: Job) -> int:
        """How long a signed link to a file of the job is good, seconds: not longer than the job is there."""
        seconds = self.settings.storage.signed_link_s
        until = expires_at(job, self.settings.retention)
        return seconds if until is None else max(1, min(seconds, int(until - self.unix_time())))

    async def job(self, job_id: str, caller: Caller) -> Job:
        """Raises NotFoundError for an unknown id, what is no id at all, an expired and another tenant's job."""
        job = self.feed.get(job_id)
        if job is None and self._is_id(job_id):
            job = await self.registry.get(job_id)
        if job is None or not caller.may_see(job) or self._expiry().has_passed(job):
            raise self._not_found(job_id)
        add_log_ids(job=job.id, tenant=job.tenant, trace=lambda: job.trace)
        return job

    def _expiry(self) -> Expiry:
        """Which jobs have expired by now."""
        return Expiry.at(self.settings.retention, self.unix_time())

    async def newest_job(self, job_id: str, caller: Caller) -> Job:
        """As `job`, but never older than what any replica has answered: one that is not final costs a registry call."""
        job = await self.job(job_id, caller)
        if job.final:
            return job
        newest = await self.registry.get(job_id)
        if newest is None:
            raise self._not_found(job_id)
        return newest

    async def final_job(self, job_id: str, caller: Caller, wait_s: float) -> Job:
        """The job once it is final, or as it is after wait_s seconds. Raises as `job` and `check_key` do."""
        deadline = time.monotonic() + wait_s
        with self.feed.watch(job_id) as change:
            while True:
                change.clear()
                key_s = await self.check_key(caller)
                job = await self.job(job_id, caller)
                left_s = deadline - time.monotonic()
                if job.final or left_s <= 0 or self.feed.shutting_down:
                    return job
                await self.wait_for_change(change, left_s if key_s is None else min(left_s, key_s))

    async def wait_for_change(self, change: asyncio.Event, seconds: float) -> bool:
        """Wait for the event, or until it is time to look at the job again; whether the event is set."""
        # While the feed is interrupted it announces no change.
        return await wait_for(change, seconds if self.feed.valid else min(seconds, self.timing.look_again_s))

    async def history(self, job_id: str, caller: Caller) -> list[Move]:
        """All moves of a job, oldest first. Raises NotFoundError as `job` does."""
        await self.job(job_id, caller)
        cached = self.feed.moves(job_id)
        if cached is not None:
            return list(cached)
        moves = await self.registry.history(job_id)
        if moves is None:
            raise self._not_found(job_id)
        return moves

    async def cancel(self, job_id: str, caller: Caller) -> Job:
        """End a job that is not final; one that was cancelled before is returned as it is.

        Raises:
            NotFoundError: there is no such job.
            VideoFinalError: it is completed, or failed.
        """
        await self.job(job_id, caller)
        job = await self.registry.cancel(job_id)
        if job is None:
            raise self._not_found(job_id)
        if job.state is not JobState.CANCELLED:
            # OpenAI's clients repeat a 409 unless this header says that it is in vain.
            headers = {"x-should-retry": "false"}
            message = f"The {self.noun} is {job.state}; there is nothing to cancel."
            raise VideoFinalError(message, self.param, f"{self.noun}_final", headers)
        return job

    async def delete(self, job_id: str, caller: Caller) -> None:
        """Forget a job and its files, after ending it if need be. Again within a day, it is as if for the first time.

        Raises:
            NotFoundError: there is no such job.
        """
        tenant = None if caller.key_tenant is None else caller.tenant
        if not (self._is_id(job_id) and await self.registry.delete(job_id, tenant)):
            raise self._not_found(job_id)

    async def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter, caller: Caller) -> JobPage:
        """A page of the wanted jobs by time of creation, of the caller's tenant alone where keys are needed.

        Raises:
            InvalidRequestError: no job has the id `after`, or none that the caller may see.
        """
        if caller.key_tenant is not None:
            wanted = replace(wanted, tenant=caller.tenant)
        wanted = replace(wanted, kind=self.kind, expiry=self._expiry())
        try:
            if after is not None:
                await self.job(after, caller)
            page = self.feed.page(limit, after, order, wanted)
            return await self.registry.list_jobs(limit, after, order, wanted) if page is None else page
        except (NotFoundError, UnknownJobError):
            message = f"Invalid 'after': there is no {self.noun} {quote(after)}; give the id of one that was listed."
            raise InvalidRequestError(message, "after") from None

    def _is_id(self, job_id: str) -> bool:
        return re.fullmatch(rf"{self.kind}_[0-9a-f]{{32}}", job_id) is not None

    def _not_found(self, job_id: str) -> NotFoundError:
        return NotFoundError(f"There is no {self.noun} {quote(job_id)}.", self.param, f"{self.noun}_not_found")
