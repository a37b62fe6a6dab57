"""Jobs for files of sequences as clients see them."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from deployments.messages import ProteinSpec, Stage
from serve_app.config import RetentionSettings
from serve_app.jobs import Job, JobPage, JobState, Move, Place, Tier, expires_at
from serve_app.openapi.schemas import VideoError
from serve_app.openapi.views import job_error, job_status, percent, unix_seconds
from serve_app.proteins.requests import FileFormat

_NO_PLACE = Place(None, None, None)


class ProteinJob(BaseModel):
    """The answers to a file of sequences, done or on their way."""

    id: str
    object: Literal["proteins.job"] = "proteins.job"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    state: JobState = Field(description="more exact than status")
    progress: int = Field(description="percent")
    sequences: int
    tokens: int = Field(description="of all passes of the model, about")
    parts: int = Field(description="that the answers come in, each an object of its own")
    parts_done: int = Field(description="the first so many can be downloaded")
    format: FileFormat = Field(description="of the answers")
    options: dict[str, Any] = Field(description="what is wanted of each sequence")
    created_at: int = Field(description="Unix seconds, as all moments here")
    completed_at: int | None = Field(description="when it ended, however")
    expires_at: int | None = Field(description="when it and its answers are gone")
    error: VideoError | None
    priority: Tier
    tenant: str
    queue_position: int | None
    estimated_start_at: int | None
    estimated_completion_at: int | None
    gpu_seconds: float = Field(description="of all devices, so far")
    parks: int = Field(description="how often it made room for another one")
    attempt: int
    webhook_url: str | None


class ProteinJobPage(BaseModel):
    """One page of jobs. To get the next one, give last_id as `after`."""

    object: Literal["list"] = "list"
    data: list[ProteinJob]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedProteinJob(BaseModel):
    """The answer to the deletion of a job."""

    id: str
    object: Literal["proteins.job.deleted"] = "proteins.job.deleted"
    deleted: Literal[True] = True


class ProteinMove(BaseModel):
    """What a job was from then on."""

    at: float = Field(description="Unix seconds")
    state: JobState
    stage: Stage
    attempt: int
    note: str = Field(description="why")


class ProteinHistory(BaseModel):
    """All moves of a job, oldest first."""

    object: Literal["list"] = "list"
    data: list[ProteinMove]


class StateEvent(ProteinMove):
    """An entry of the history."""

    type: Literal["state"] = "state"
    job_id: str
    number: int = Field(description="of the entry, from 1")


class ProgressEvent(BaseModel):
    """How far a job is."""

    type: Literal["progress"] = "progress"
    job_id: str
    state: JobState
    progress: int = Field(ge=0, le=99, description="percent")
    parts_done: int
    parts: int
    queue_position: int | None
    estimated_start_at: int | None
    estimated_completion_at: int | None


class DoneEvent(BaseModel):
    """The job is completed, failed or cancelled; the stream ends."""

    type: Literal["done"] = "done"
    job: ProteinJob


class DeletedEvent(BaseModel):
    """The job was deleted; the stream ends."""

    type: Literal["deleted"] = "deleted"
    job_id: str


ProteinEvent = StateEvent | ProgressEvent | DoneEvent | DeletedEvent


@dataclass(frozen=True, slots=True)
class JobViews:
    """Makes them of jobs. retention: for how long jobs are kept."""

    retention: RetentionSettings

    def job(self, job: Job) -> ProteinJob:
        """The job as it is."""
        spec, place = spec_of(job), job.place or _NO_PLACE
        return ProteinJob(
            id=job.id,
            model=job.model,
            status=job_status(job.state),
            state=job.state,
            progress=100 if job.state is JobState.COMPLETED else percent(job),
            sequences=spec.sequences,
            tokens=spec.tokens,
            parts=spec.parts,
            parts_done=parts_done(job),
            format=spec.format,
            options=dict(spec.options),
            created_at=int(job.created_at),
            completed_at=unix_seconds(job.completed_at),
            expires_at=expires_at(job, self.retention),
            error=job_error(job),
            priority=job.tier,
            tenant=job.tenant,
            queue_position=place.position,
            estimated_start_at=unix_seconds(place.starts_at),
            estimated_completion_at=unix_seconds(place.finishes_at),
            gpu_seconds=round(job.device_s, 3),
            parks=job.parks,
            attempt=job.attempt,
            webhook_url=job.webhook_url,
        )

    def page(self, page: JobPage) -> ProteinJobPage:
        """A page of them."""
        jobs = [self.job(job) for job in page.jobs]
        return ProteinJobPage(
            data=jobs,
            first_id=jobs[0].id if jobs else None,
            last_id=jobs[-1].id if jobs else None,
            has_more=page.has_more,
        )


def spec_of(job: Job) -> ProteinSpec:
    """What is made; whoever asks knows that it is no video."""
    assert isinstance(job.spec, ProteinSpec)
    return job.spec


def parts_done(job: Job) -> int:
    """How many parts lie in storage, the first ones."""
    return spec_of(job).parts if job.state is JobState.COMPLETED else job.checkpoint_step


def to_move(move: Move) -> ProteinMove:
    return ProteinMove(at=move.at, state=move.state, stage=move.stage, attempt=move.attempt, note=move.note)


def to_state(job: Job, number: int, move: Move) -> StateEvent:
    return StateEvent(job_id=job.id, number=number, **to_move(move).model_dump())


def to_progress(job: Job) -> ProgressEvent:
    place = job.place or _NO_PLACE
    return ProgressEvent(
        job_id=job.id,
        state=job.state,
        progress=percent(job),
        parts_done=parts_done(job),
        parts=spec_of(job).parts,
        queue_position=place.position,
        estimated_start_at=unix_seconds(place.starts_at),
        estimated_completion_at=unix_seconds(place.finishes_at),
    )
