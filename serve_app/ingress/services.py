"""What every route works with: the job registry and its feed, the store of videos, the settings."""

from dataclasses import dataclass, field, replace
from typing import Protocol

from fastapi import Request
from pydantic import BaseModel

from deployments.messages import JobKind
from deployments.settings import ModelSettings
from serve_app.access.targets import check_target
from serve_app.access.tenants import Caller, tier_of
from serve_app.errors import (
    TooLargeError,
)
from serve_app.feed.follower import FeedFollower
from serve_app.ingress.job_access import JobAccess
from serve_app.ingress.request_trace import RequestTrace
from serve_app.jobs import (
    Acceptance,
    Health,
    Job,
    Submission,
    new_job_id,
)
from serve_app.openapi.schemas import Video
from serve_app.openapi.views import to_video
from serve_app.prompts.tokens import CountTokens
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import CheckedRequest, EnhanceRequestChecker, RemixRequestChecker, VideoRequestChecker
from serve_app.scheduling.activity import Activity
from serve_app.scheduling.fitting import advice


class Safety(Protocol):
    """Which prompts are refused; see `serve_app.prompts.safety.PromptSafety`."""

    async def check(self, prompt: str, param: str) -> None: ...


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
class Services(JobAccess):
    """Of the app of the videos."""

    kind = JobKind.VIDEO
    noun = "video"
    param = "video_id"

    feed: FeedFollower
    count_tokens: CountTokens | None = None  # as the text encoder does; None: the tokenizer is not on this machine
    safety: Safety | None = None  # refuses prompts; None: every prompt is taken
    checks: RequestChecks = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        drafts = self.settings.scheduling.draft_when_wait_over_s is not None
        self.checks = RequestChecks(self.settings.model, self.count_tokens, drafts)

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
        job_id = new_job_id(JobKind.VIDEO)
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

    async def preview(self, job: Job) -> bytes | None:
        """The newest picture (WebP) of a video that is being sampled, if there is one."""
        if job.final:
            return None
        return await self.registry.preview(job.id)

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
