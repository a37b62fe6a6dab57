"""Jobs for files of sequences, as the routes see them."""

from dataclasses import dataclass, field, replace

from fastapi import Request

from deployments.embedder.settings import ProteinSettings
from deployments.keys import answered_part_key
from deployments.messages import JobKind, ProteinSpec
from deployments.storage.object_store import ObjectInfo
from serve_app.access.targets import check_target
from serve_app.access.tenants import Caller, tier_of
from serve_app.errors import ApiError, NotFoundError, VideoNotReadyError
from serve_app.ingress.event_stream import JobEvents
from serve_app.ingress.job_access import JobAccess
from serve_app.jobs import Acceptance, Job, Move, Submission, Tier, new_job_id
from serve_app.proteins.files.parts import PartCutter
from serve_app.proteins.files.schemas import (
    DeletedEvent,
    DoneEvent,
    JobViews,
    ProgressEvent,
    StateEvent,
    parts_done,
    spec_of,
    to_progress,
    to_state,
)
from serve_app.proteins.files.upload import FileLimits, delete_file, store_file
from serve_app.proteins.requests import FileRequest
from serve_app.proteins.service import ProteinService, check_options
from serve_app.requests.fingerprints import fingerprint_of


@dataclass
class ProteinJobs(JobAccess):
    """Of one HTTP replica."""

    kind = JobKind.PROTEINS
    noun = "job"
    param = "job_id"

    proteins: ProteinSettings = field(kw_only=True)
    service: ProteinService = field(kw_only=True)
    views: JobViews = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.views = JobViews(self.settings.retention)

    async def submit(self, request: Request, asked: FileRequest, caller: Caller) -> Acceptance:
        """Store the file in the request's body and make a job of it; returns once both are durable.

        Returns:
            `repeated` says that an earlier request with the caller's idempotency key made the job.

        Raises:
            PermissionDeniedError: the tenant may not ask for this priority.
            InvalidRequestError: the model has not what is asked for, or webhooks are not sent to this URL.
            ServiceUnavailableError: the model is still being loaded.
            QueueFullError, RateLimitError: too many jobs wait, or the tenant has had its share.
            IdempotencyKeyReusedError: the key belongs to a request for something else.
            And what `store_file` raises.
        """
        info = self.service.any_device()
        check_options(asked, info)
        tier = tier_of(caller, asked.priority or Tier.BATCH)
        if asked.webhook_url is not None:
            await check_target(asked.webhook_url, self.settings.webhooks.allow_private)
        job_id = new_job_id(self.kind)
        limits = FileLimits(
            self.proteins.max_file_bytes, self.proteins.max_file_sequences, self.settings.ingress.body_timeout_s
        )
        stored = await store_file(
            request, self.store, job_id, PartCutter(self.proteins, asked, info.hidden_size), limits
        )
        options = asked.asked()
        sent = asked.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        fingerprint = fingerprint_of({"file": stored.sha256, "sent": sent})
        submission = Submission(
            job_id=job_id,
            model=self.proteins.served_name,
            spec=ProteinSpec(stored.parts, stored.sequences, stored.tokens, options, asked.format),
            tenant=caller.tenant,
            tier=tier,
            idempotency_key=caller.idempotency_key,
            fingerprint=fingerprint,
            sent_fingerprint=fingerprint,
            webhook_url=asked.webhook_url,
        )
        try:
            accepted = await self.registry.submit(submission)
        except ApiError:  # nothing was written; where that is not known, the sweeper of orphans decides
            await delete_file(self.store, job_id)
            raise
        if accepted.job.id != job_id:
            await delete_file(self.store, job_id)
        return replace(accepted, repeated=accepted.job.id != job_id)

    async def part(self, job: Job, number: int) -> tuple[str, ObjectInfo]:
        """The key of a part of the answers, from 1, and what the store says of it.

        Raises:
            NotFoundError: the job has no such part, or it is gone.
            VideoNotReadyError: it is not done yet.
        """
        spec = spec_of(job)
        if not 1 <= number <= spec.parts:
            raise NotFoundError(f"The job has parts 1 to {spec.parts}, and no {number}.", "number", "part_not_found")
        if number > parts_done(job):
            headers = {"x-should-retry": "false"} if job.final else {}
            state = f"{job.state}: {job.error.message}" if job.error else job.state
            raise VideoNotReadyError(
                f"Part {number} is not there, {parts_done(job)} of {spec.parts} are; the job is {state}.",
                "number",
                "part_not_ready",
                headers,
            )
        key = answered_part_key(job.id, number - 1, spec.format)
        info = await self.store.stat(key)
        if info is None:
            raise NotFoundError(f"Part {number} is gone.", "number", "content_not_found")
        return key, info


@dataclass
class ProteinJobEvents(JobEvents[ProteinJobs]):
    """Of a job for a file."""

    def state_event(self, job: Job, number: int, move: Move) -> StateEvent:
        return to_state(job, number, move)

    def progress_event(self, job: Job) -> ProgressEvent:
        return to_progress(job)

    def done_event(self, job: Job) -> DoneEvent:
        return DoneEvent(job=self.access.views.job(job))

    def deleted_event(self, job: Job) -> DeletedEvent:
        return DeletedEvent(job_id=job.id)
