"""What every route works with: the job registry and its feed, the store of videos, the settings."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from fastapi import Request
from pydantic import BaseModel

from deployments.background import wait_for
from deployments.logs.ids import add_log_ids
from deployments.settings import ModelSettings
from deployments.storage.object_store import Bucket
from serve_app.access.exposure import keys_needed
from serve_app.access.targets import check_target
from serve_app.access.tenants import AccessTable, Caller, tenant_of_key, tier_of
from serve_app.config import AppSettings
from serve_app.errors import (
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    UnknownJobError,
    VideoFinalError,
    quote,
)
from serve_app.feed.follower import FeedFollower
from serve_app.feed.new_keys import NewKeys
from serve_app.ingress.request_trace import RequestTrace
from serve_app.jobs import (
    Acceptance,
    Expiry,
    Health,
    Job,
    JobFilter,
    JobPage,
    JobState,
    Move,
    Order,
    Submission,
    expires_at,
    new_job_id,
)
from serve_app.openapi.schemas import Video
from serve_app.openapi.views import to_video
from serve_app.prompts.tokens import CountTokens
from serve_app.registry_api import RegistryApi
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import CheckedRequest, EnhanceRequestChecker, RemixRequestChecker, VideoRequestChecker
from serve_app.scheduling.activity import Activity
from serve_app.scheduling.fitting import advice

# nginx answers 504 when it has heard nothing for 60 s (proxy_read_timeout), and so do load balancers.
LONGEST_WAIT_S = 50.0

_JOB_ID = re.compile(r"video_[0-9a-f]{32}")


class Safety(Protocol):
    """Which prompts are refused; see `serve_app.prompts.safety.PromptSafety`."""

    async def check(self, prompt: str, param: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """How long an ingress replica waits for what."""

    look_again_s: float = 1.0  # between two looks at a job while the registry's feed is interrupted
    heartbeat_s: float = 10.0  # of silence, after which a stream of events sends a comment
    longest_wait_s: float = LONGEST_WAIT_S  # until a request that waits for a video is answered, whatever it asks for


class RequestChecks:
    """What checks the body of each route that makes videos, for one model.

    Args:
        drafts: whether a request for `auto` may become a draft.
    """

    def __init__(self, model: ModelSettings, count_tokens: CountTokens | None, drafts: bool) -> None:
        self.create = VideoRequestChecker(model, request_schema(model, "CreateVideoRequest"), count_tokens, drafts)
        self.generate = VideoRequestChecker(
            model, request_schema(model, "GenerateRequest", prompt_field="text"), count_tokens, drafts
        )
        self.remix = RemixRequestChecker(self.create)
        self.enhance = EnhanceRequestChecker(self.create)
        self.schemas: dict[str, type[BaseModel]] = {
            "create_video": self.create.schema,
            "generate": self.generate.schema,
            "create_video_sync": self.create.schema,
            "create_generation": self.create.schema,
            "remix_video": self.remix.schema,
            "enhance_video": self.enhance.schema,
        }
        """By the name of the route."""


@dataclass
class Services:
    """Built once in each ingress replica."""

    settings: AppSettings
    registry: RegistryApi
    store: Bucket  # of the finished videos
    feed: FeedFollower  # of the same registry
    count_tokens: CountTokens | None = None  # as the text encoder does; None: the tokenizer is not on this machine
    safety: Safety | None = None  # refuses prompts; None: every prompt is taken
    timing: Timing = Timing()
    unix_time: Callable[[], float] = time.time  # the wall clock
    checks: RequestChecks = field(init=False)
    new_keys: NewKeys = field(init=False)

    def __post_init__(self) -> None:
        self.new_keys = NewKeys(self.registry, self.feed)
        drafts = self.settings.scheduling.draft_when_wait_over_s is not None
        self.checks = RequestChecks(self.settings.model, self.count_tokens, drafts)

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

    async def submit(self, request: CheckedRequest, caller: Caller, trace: RequestTrace | None = None) -> Acceptance:
        """Make a job for the request and return it once it is durable.

        Args:
            trace: of the request.

        Returns:
            `repeated` says that an earlier request with the caller's idempotency key made the job.

        Raises:
            PermissionDeniedError: the tenant may not ask for this priority.
            ContentPolicyError: the prompt is refused.
            InvalidRequestError: webhooks are not sent to this URL.
            TooLargeError: no sampler has the memory for it; names what would fit.
            QueueFullError, RateLimitError: too many jobs wait, or the tenant has had its share.
            IdempotencyKeyReusedError: the key belongs to a request for something else.
        """
        tier = tier_of(caller, request.tier)
        if self.safety is not None:
            await self.safety.check(request.spec.prompt, request.prompt_field)
        if request.webhook_url is not None:
            await check_target(request.webhook_url, self.settings.webhooks.allow_private)
        # The id is made here, so that a call repeated after a lost answer is the same job.
        job_id = new_job_id()
        submission = Submission(
            job_id=job_id,
            model=self.settings.model.name,
            spec=request.spec,
            tenant=caller.tenant,
            tier=tier,
            idempotency_key=caller.idempotency_key,
            fingerprint=request.fingerprint,
            sent_fingerprint=request.sent_fingerprint,
            origin=request.origin,
            webhook_url=request.webhook_url,
            requested=request.requested,
            cancel_after_s=request.cancel_after_s,
            draft=request.draft,
            traceparent=None if trace is None else trace.begin_job(job_id, caller.tenant),
        )
        try:
            accepted = await self.registry.submit(submission)
        except TooLargeError as error:
            instead = advice(self.settings.model, error.max_tokens, request.spec)
            raise TooLargeError(error.tokens, error.max_tokens, instead) from None
        # To the registry a call repeated after a lost answer is a repeat too; to the client it is its first.
        return replace(accepted, repeated=accepted.job.id != job_id)

    async def job(self, job_id: str, caller: Caller) -> Job:
        """Raises NotFoundError for an unknown id, what is no id at all, an expired and another tenant's video."""
        job = self.feed.get(job_id)
        if job is None and _JOB_ID.fullmatch(job_id):
            job = await self.registry.get(job_id)
        if job is None or not caller.may_see(job) or self._expiry().has_passed(job):
            raise _not_found(job_id)
        add_log_ids(job=job.id, tenant=job.tenant, trace=lambda: job.trace)
        return job

    def _expiry(self) -> Expiry:
        """Which jobs have expired by now."""
        return Expiry.at(self.settings.retention, self.unix_time())

    def link_s(self, job: Job) -> int:
        """How long a signed link to a file of the video is good, seconds: not longer than the video is there."""
        seconds = self.settings.storage.signed_link_s
        until = expires_at(job, self.settings.retention)
        return seconds if until is None else max(1, min(seconds, int(until - self.unix_time())))

    async def newest_job(self, job_id: str, caller: Caller) -> Job:
        """As `job`, but never older than what any replica has answered: one that is not final costs a registry call."""
        job = await self.job(job_id, caller)
        if job.final:
            return job
        newest = await self.registry.get(job_id)
        if newest is None:
            raise _not_found(job_id)
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
            raise _not_found(job_id)
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
            raise _not_found(job_id)
        if job.state is not JobState.CANCELLED:
            # OpenAI's clients repeat a 409 unless this header says that it is in vain.
            headers = {"x-should-retry": "false"}
            raise VideoFinalError(f"The video is {job.state}; there is nothing to cancel.", "video_id", headers=headers)
        return job

    async def delete(self, job_id: str, caller: Caller) -> None:
        """Forget a job and its files, after ending it if need be. Again within a day, it is as if for the first time.

        Raises:
            NotFoundError: there is no such job.
        """
        tenant = None if caller.key_tenant is None else caller.tenant
        if not (_JOB_ID.fullmatch(job_id) and await self.registry.delete(job_id, tenant)):
            raise _not_found(job_id)

    async def preview(self, job: Job) -> bytes | None:
        """The newest picture (WebP) of a video that is being sampled, if there is one."""
        if job.final:
            return None
        return await self.registry.preview(job.id)

    async def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter, caller: Caller) -> JobPage:
        """A page of the wanted jobs by time of creation, of the caller's tenant alone where keys are needed.

        Raises:
            InvalidRequestError: no job has the id `after`, or none that the caller may see.
        """
        if caller.key_tenant is not None:
            wanted = replace(wanted, tenant=caller.tenant)
        wanted = replace(wanted, expiry=self._expiry())
        try:
            if after is not None:
                await self.job(after, caller)
            page = self.feed.page(limit, after, order, wanted)
            return await self.registry.list_jobs(limit, after, order, wanted) if page is None else page
        except (NotFoundError, UnknownJobError):
            raise InvalidRequestError(
                f"Invalid 'after': there is no video {quote(after)}; give the id of one that was listed.", "after"
            ) from None

    async def activity(self) -> Activity:
        return await self.registry.activity()

    async def health(self) -> Health:
        return await self.registry.health()

    def video(self, job: Job) -> Video:
        """The job as clients see it."""
        return to_video(job, self.settings.retention)


def services_of(request: Request) -> Services:
    """What the app of this request works with. As a FastAPI dependency it would cost a read a tenth more."""
    services: Services = request.app.state.services
    return services


def _not_found(job_id: str) -> NotFoundError:
    return NotFoundError(f"There is no video {quote(job_id)}.", "video_id", "video_not_found")
