"""What every route works with: the job registry, the store of videos, the settings."""

import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from deployments.messages import VideoSpec
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
from serve_app.jobs import Health, Job, JobPage, JobState
from serve_app.prompt_limits import CountTokens
from serve_app.video_storage import Variant
from serve_app.wording import shown

Order = Literal["asc", "desc"]

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

    async def submit(self, spec: VideoSpec) -> Job:
        """Make a job of the spec and return it once it is durable.

        The id is made here, so that a call repeated after a lost answer is the same job.

        Raises:
            TooLargeError: no sampler has the memory for it; names what would fit.
        """
        job_id = f"video_{uuid.uuid4().hex}"
        model = self.settings.model
        try:
            job: Job = await self.registry.call("submit", job_id, model.name, spec)
        except TooLargeError as error:
            instead = advice(model, error.max_tokens, spec)
            raise TooLargeError(error.tokens, error.max_tokens, instead) from None
        return job

    async def job(self, job_id: str) -> Job:
        """Raises NotFoundError for an unknown id and for what is no id at all."""
        return await self._of_job("get", job_id)

    async def cancel(self, job_id: str) -> Job:
        """End a job that is not final; one that was cancelled before is returned as it is.

        Raises:
            NotFoundError: there is no such job.
            VideoFinalError: it is completed, or failed.
        """
        job = await self._of_job("cancel", job_id)
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

    async def _of_job(self, method: str, job_id: str) -> Job:
        job: Job | None = None
        if _JOB_ID.fullmatch(job_id):
            job = await self.registry.call(method, job_id)
        if job is None:
            raise NotFoundError(f"There is no video {shown(job_id)}.", "video_id", "video_not_found")
        return job

    async def page(self, limit: int, after: str | None, order: Order) -> JobPage:
        """A page of jobs by time of creation. Raises InvalidRequestError if no job has the id `after`."""
        try:
            if after is not None and not _JOB_ID.fullmatch(after):
                raise UnknownJobError(after)
            page: JobPage = await self.registry.call("list_jobs", limit, after, order)
        except UnknownJobError:
            raise InvalidRequestError(
                f"Invalid 'after': there is no video {shown(after)}; give the id of one that was listed.", "after"
            ) from None
        return page

    async def health(self) -> Health:
        health: Health = await self.registry.call("health")
        return health
