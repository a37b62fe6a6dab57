"""What every route works with: the job registry, the store of videos, the settings."""

import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from deployments.messages import VideoSpec
from deployments.object_store import ObjectInfo
from serve_app.config import AppSettings
from serve_app.errors import InvalidRequestError, NotFoundError, UnknownJobError
from serve_app.jobs import Health, Job, JobPage
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
        """
        job_id = f"video_{uuid.uuid4().hex}"
        job: Job = await self.registry.call("submit", job_id, self.settings.model.name, spec)
        return job

    async def job(self, job_id: str) -> Job:
        """Raises NotFoundError for an unknown id and for what is no id at all."""
        job: Job | None = None
        if _JOB_ID.fullmatch(job_id):
            job = await self.registry.call("get", job_id)
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
