"""The shapes of the answers: OpenAI's objects with our own fields beside them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from deployments.messages import ReplicaInfo, Stage
from deployments.settings import Dimension, ModelSettings
from serve_app.config import RetentionSettings
from serve_app.errors import ApiError
from serve_app.jobs import RUNNING, Health, Job, JobPage, JobState, Move, Place, Relation, Tier

Status = Literal["queued", "in_progress", "completed", "failed"]

# The weights' date of making is not known to the server; OpenAI's clients need an integer.
MODEL_CREATED = 0
_DAY_S = 86_400
_NOWHERE = Place(None, None, None)


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class Video(BaseModel):
    """A video and the job that makes it. Times are Unix seconds."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(ge=0, le=100, description="percent of the whole job; 100 only when completed")
    created_at: int
    completed_at: int | None
    expires_at: int | None = Field(description="when the video and all that is known of it are deleted")
    prompt: str
    seconds: str
    size: str
    error: VideoError | None
    remixed_from_video_id: str | None
    enhanced_from_video_id: str | None = Field(description="the video that this is a better one of: more steps")
    negative_prompt: str
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    exact: bool = Field(description="sampled in passes of its own, so that it is the same bit for bit each time")
    state: JobState = Field(description="the exact state, where status is OpenAI's view of it")
    step: int = Field(description="denoising steps done of num_inference_steps")
    checkpoint_step: int = Field(description="the step that is safe in storage: a new attempt begins there")
    steps_run: int = Field(
        description="denoising steps run in all; more than num_inference_steps only if some were lost with a process"
    )
    priority: Tier = Field(description="the highest that waits goes first")
    tenant: str = Field(description="whose video it is")
    queue_position: int | None = Field(description="videos that go before it to a free replica; null unless it waits")
    estimated_start_at: int | None = Field(description="when it goes on from the queue, as forecast")
    estimated_completion_at: int | None = Field(description="when it is completed, as forecast from measured times")
    gpu_seconds: float = Field(description="device time spent on it so far, all attempts and stages together")
    parks: int = Field(description="how often it was parked for a video of a higher priority; it lost no step")
    attempt: int = Field(description="1 and up; grows when a stage was lost or failed and is tried again")
    preview_step: int | None = Field(description="after which step the newest preview was made, if there is one")
    webhook_url: str | None = Field(description="who is told when it is completed, failed or cancelled")
    timings: dict[str, float] = Field(description="wall time in seconds by part of the work")
    preview: str | None = Field(
        default=None,
        exclude_if=lambda picture: picture is None,
        description="only with include=preview, and while there is one: the newest picture, WebP in base64",
    )


class DeletedVideo(BaseModel):
    """The answer to the deletion of a video."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class VideoPage(BaseModel):
    """One page of videos. To get the next one, give last_id as `after`."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoMove(BaseModel):
    """One entry of a video's history: it came to `state`."""

    at: float = Field(description="Unix seconds")
    state: JobState
    stage: Stage = Field(description="the stage that it ran, or waited for")
    attempt: int
    note: str = Field(description="why, where there is something to say")


class VideoHistory(BaseModel):
    """All moves of a video, oldest first."""

    object: Literal["list"] = "list"
    data: list[VideoMove]


class StateEvent(BaseModel):
    """A video came to `state`; one for each entry of its history."""

    type: Literal["state"] = "state"
    video_id: str
    number: int = Field(description="its place in the history, from 1")
    at: float = Field(description="Unix seconds")
    state: JobState
    stage: Stage
    attempt: int
    note: str


class ProgressEvent(BaseModel):
    """How far a video is."""

    type: Literal["progress"] = "progress"
    video_id: str
    state: JobState
    progress: int = Field(ge=0, le=99, description="percent of the whole job")
    step: int
    num_inference_steps: int
    queue_position: int | None
    estimated_start_at: int | None
    estimated_completion_at: int | None


class PreviewEvent(BaseModel):
    """A new picture of the half-made video. image: WebP in base64."""

    type: Literal["preview"] = "preview"
    video_id: str
    step: int
    image: str


class DoneEvent(BaseModel):
    """The video is completed, failed or cancelled; the stream ends."""

    type: Literal["done"] = "done"
    video: Video


class DeletedEvent(BaseModel):
    """The video was deleted; the stream ends."""

    type: Literal["deleted"] = "deleted"
    video_id: str


VideoEvent = StateEvent | ProgressEvent | PreviewEvent | DoneEvent | DeletedEvent


class ModelLimits(BaseModel):
    """What may be asked of the model."""

    width: Dimension
    height: Dimension
    num_frames: Dimension
    fps: Dimension
    num_inference_steps: Dimension
    max_guidance_scale: float
    max_pixels: int = Field(description="bound of width x height x num_frames")
    max_prompt_chars: int
    max_prompt_tokens: int


class ModelDefaults(BaseModel):
    """What is taken for a field that a request leaves out."""

    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    enhanced_steps: int | None = Field(description="of an enhanced video; null: twice those of its origin")
    guidance_scale: float


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    limits: ModelLimits
    defaults: ModelDefaults


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """What every error is answered with."""

    error: ErrorBody


class Replica(BaseModel):
    """A model replica that has announced itself."""

    replica: str
    device: str
    model: str
    slots: int = Field(description="how many jobs it works on at once, 0 if it takes no more")
    max_tokens: int | None = Field(
        description="latent frames x height/16 x width/16 of the largest video that fits its memory, if known"
    )


class HealthReport(BaseModel):
    """Whether videos can be made now. error: what is missing, None when nothing is."""

    status: Literal["ok", "unavailable"]
    models: list[str]
    devices: dict[Stage, list[Replica]]
    queue: dict[str, int] = Field(description="jobs that wait or run, by state")
    storage: str = Field(description="'ok', or what is wrong with the object store")
    database: str = Field(description="'ok', or what is wrong with the database of jobs")
    error: ErrorBody | None = None


def to_video(job: Job, retention: RetentionSettings) -> Video:
    """OpenAI's view of a job, which is kept for as long as `retention` says."""
    spec, place, origin = job.spec, job.place or _NOWHERE, job.origin
    done = job.state is JobState.COMPLETED
    return Video(
        id=job.id,
        model=job.model,
        status=_status(job.state),
        progress=100 if done else _percent(job),
        created_at=int(job.created_at),
        completed_at=_unix(job.completed_at),
        expires_at=_unix(_expires_at(job, retention)),
        prompt=spec.prompt,
        seconds=f"{round(spec.num_frames / spec.fps, 3):g}",
        size=f"{spec.width}x{spec.height}",
        error=_error(job),
        remixed_from_video_id=origin.video_id if origin and origin.relation is Relation.REMIX else None,
        enhanced_from_video_id=origin.video_id if origin and origin.relation is Relation.ENHANCE else None,
        negative_prompt=spec.negative_prompt,
        num_frames=spec.num_frames,
        fps=spec.fps,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        seed=spec.seed,
        exact=spec.exact,
        state=job.state,
        step=job.step,
        checkpoint_step=job.checkpoint_step,
        steps_run=job.steps_run,
        priority=job.tier,
        tenant=job.tenant,
        queue_position=place.position,
        estimated_start_at=_unix(place.starts_at),
        estimated_completion_at=_unix(place.finishes_at),
        gpu_seconds=round(job.device_s, 3),
        parks=job.parks,
        attempt=job.attempt,
        preview_step=None if job.final else job.preview_step,
        webhook_url=job.webhook_url,
        timings=job.seconds,
    )


def to_state(video_id: str, number: int, move: Move) -> StateEvent:
    return StateEvent(
        video_id=video_id,
        number=number,
        at=move.at,
        state=move.state,
        stage=move.stage,
        attempt=move.attempt,
        note=move.note,
    )


def to_progress(job: Job) -> ProgressEvent:
    place = job.place or _NOWHERE
    return ProgressEvent(
        video_id=job.id,
        state=job.state,
        progress=_percent(job),
        step=job.step,
        num_inference_steps=job.spec.num_inference_steps,
        queue_position=place.position,
        estimated_start_at=_unix(place.starts_at),
        estimated_completion_at=_unix(place.finishes_at),
    )


def to_page(page: JobPage, retention: RetentionSettings) -> VideoPage:
    videos = [to_video(job, retention) for job in page.jobs]
    return VideoPage(
        data=videos,
        first_id=videos[0].id if videos else None,
        last_id=videos[-1].id if videos else None,
        has_more=page.has_more,
    )


def to_history(moves: Sequence[Move]) -> VideoHistory:
    return VideoHistory(
        data=[VideoMove(at=m.at, state=m.state, stage=m.stage, attempt=m.attempt, note=m.note) for m in moves]
    )


def to_model_list(model: ModelSettings) -> ModelList:
    limits = ModelLimits(
        width=model.width,
        height=model.height,
        num_frames=model.num_frames,
        fps=model.fps,
        num_inference_steps=model.num_inference_steps,
        max_guidance_scale=model.max_guidance_scale,
        max_pixels=model.max_pixels,
        max_prompt_chars=model.max_prompt_chars,
        max_prompt_tokens=model.max_sequence_length,
    )
    defaults = ModelDefaults(
        width=model.width.default,
        height=model.height.default,
        num_frames=model.num_frames.default,
        fps=model.fps.default,
        num_inference_steps=model.num_inference_steps.default,
        enhanced_steps=model.enhanced_steps,
        guidance_scale=model.guidance_scale,
    )
    served = Model(id=model.name, created=MODEL_CREATED, owned_by="mochi-serve", limits=limits, defaults=defaults)
    return ModelList(data=[served])


def to_health(health: Health, storage: str) -> HealthReport:
    """The report; its error is set until each stage has a replica, and the store and the database work."""
    devices = {stage: [_replica(info) for info in health.replicas.get(stage, ())] for stage in Stage}
    missing = [f"no {stage} replica is ready" for stage, replicas in devices.items() if not replicas]
    missing += [what for what in (storage, health.database) if what != "ok"]
    return HealthReport(
        status="unavailable" if missing else "ok",
        models=sorted({replica.model for replicas in devices.values() for replica in replicas}),
        devices=devices,
        queue={str(state): count for state, count in health.queue.items()},
        storage=storage,
        database=health.database,
        error=_not_ready(missing) if missing else None,
    )


def to_error_body(error: ApiError) -> ErrorBody:
    return ErrorBody(message=error.message, type=error.type, param=error.param, code=error.code)


def _not_ready(missing: list[str]) -> ErrorBody:
    message = f"Not ready: {'; '.join(missing)}."
    return ErrorBody(message=message, type="server_error", param=None, code="not_ready")


def _replica(info: ReplicaInfo) -> Replica:
    return Replica(
        replica=info.replica,
        device=info.device,
        model=info.model,
        slots=info.slots,
        max_tokens=info.max_tokens,
    )


def states_of(status: Status) -> tuple[JobState, ...]:
    """The states that OpenAI's status stands for."""
    return tuple(state for state in JobState if _status(state) == status)


def _status(state: JobState) -> Status:
    if state is JobState.QUEUED:
        return "queued"
    if state in RUNNING:
        return "in_progress"
    return "completed" if state is JobState.COMPLETED else "failed"


def _percent(job: Job) -> int:
    return max(0, min(99, int(job.progress * 100)))


def _unix(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _expires_at(job: Job, retention: RetentionSettings) -> float | None:
    days = retention.completed_days if job.state is JobState.COMPLETED else retention.failed_days
    return None if job.completed_at is None or days is None else job.completed_at + days * _DAY_S


def _error(job: Job) -> VideoError | None:
    if job.error is not None:
        return VideoError(code=job.error.code, message=job.error.message)
    if job.state is JobState.CANCELLED:
        return VideoError(code="cancelled", message="The job was cancelled.")
    return None
