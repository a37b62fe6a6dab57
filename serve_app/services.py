"""What every route works with: the job registry, the store of videos, the settings."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from deployments.object_store import ObjectInfo
from serve_app.config import AppSettings
from serve_app.errors import (
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    UnknownJobError,
    VideoFinalError,
)
from serve_app.fitting import advice
from serve_app.jobs import Accepted, Health, Job, JobFilter, JobPage, JobState, Move, Order, Submission, new_job_id
from serve_app.prompt_limits import CountTokens
from serve_app.request_headers import Caller
from serve_app.video_requests import CheckedRequest
from serve_app.video_storage import Variant
from serve_app.wording import shown

_JOB_ID = re.compile(r"video_[0-9a-f]{32}")


class Registry(Protocol):
    """The way to the job registry; `deployments.registry_link.RegistryLink` in a running app."""

    async def call(self, method: str, *args: Any) -> Any: ...


class Storage(Protocol):
    """The finished videos; `serve_app.video_storage.VideoStorage` in a running app."""

    async def ping(self) -> None: ...

    async def stat_video(self, job_id: str, variant: Variant) -> ObjectInfo | None: ...

    def stream_video(
        self, job_id: str, variant: Variant, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True)
class Services:
    """Built once in each ingress replica.

    count_tokens: counts a prompt as the text encoder does; None when the tokenizer is not on this machine.
    """

    settings: AppSettings
    registry: Registry
    storage: Storage
    count_tokens: CountTokens | None = None

    async def submit(self, asked: CheckedRequest, caller: Caller) -> Accepted:
        """Make a job of what is asked for and return it once it is durable.

        Returns:
            `repeated` tells that an earlier request with the caller's idempotency key made the job.

        Raises:
            TooLargeError: no sampler has the memory for it; names what would fit.
            QueueFullError: too many jobs wait, in all or of this tenant.
            IdempotencyKeyReusedError: the key belongs to a request for something else.
        """
        # The id is made here, so that a call repeated after a lost answer is the same job.
        job_id = new_job_id()
        model = self.settings.model
        key, fingerprint = caller.idempotency_key, asked.fingerprint
        submission = Submission(job_id, model.name, asked.spec, caller.tenant, asked.tier, key, fingerprint)
        try:
            accepted: Accepted = await self.registry.call("submit", submission)
        except TooLargeError as error:
            instead = advice(model, error.max_tokens, asked.spec)
            raise TooLargeError(error.tokens, error.max_tokens, instead) from None
        # To the registry a call repeated after a lost answer is a repeat too; to the client it is its first.
        return replace(accepted, repeated=accepted.job.id != job_id)

    async def job(self, job_id: str) -> Job:
        """Raises NotFoundError for an unknown id and for what is no id at all."""
        job: Job = await self._of_job("get", job_id)
        return job

    async def history(self, job_id: str) -> list[Move]:
        """All moves of a job, oldest first. Raises NotFoundError as `job` does."""
        moves: list[Move] = await self._of_job("history", job_id)
        return moves

    async def cancel(self, job_id: str) -> Job:
        """End a job that is not final; one that was cancelled before is returned as it is.

        Raises:
            NotFoundError: there is no such job.
            VideoFinalError: it is completed, or failed.
        """
        job: Job = await self._of_job("cancel", job_id)
        if job.state is not JobState.CANCELLED:
            # OpenAI's clients repeat a 409 unless this header says that it is in vain.
            headers = {"x-should-retry": "false"}
            raise VideoFinalError(f"The video is {job.state}; there is nothing to cancel.", "video_id", headers=headers)
        return job

    async def preview(self, job_id: str) -> bytes | None:
        """The newest picture (WebP) of a video that is being sampled, if there is one."""
        if not _JOB_ID.fullmatch(job_id):
            return None
        picture: bytes | None = await self.registry.call("preview", job_id)
        return picture

    async def _of_job(self, method: str, job_id: str) -> Any:
        answer = await self.registry.call(method, job_id) if _JOB_ID.fullmatch(job_id) else None
        if answer is None:
            raise NotFoundError(f"There is no video {shown(job_id)}.", "video_id", "video_not_found")
        return answer

    async def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage:
        """A page of the wanted jobs by time of creation. Raises InvalidRequestError if no job has the id `after`."""
        try:
            if after is not None and not _JOB_ID.fullmatch(after):
                raise UnknownJobError(after)
            page: JobPage = await self.registry.call("list_jobs", limit, after, order, wanted)
        except UnknownJobError:
            raise InvalidRequestError(
                f"Invalid 'after': there is no video {shown(after)}; give the id of one that was listed.", "after"
            ) from None
        return page

    async def health(self) -> Health:
        health: Health = await self.registry.call("health")
        return health
