"""The shapes of the answers: OpenAI's objects with our own fields beside them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from deployments.messages import ReplicaInfo, Stage
from deployments.settings import Dimension, ModelSettings
from serve_app.errors import ApiError
from serve_app.jobs import RUNNING, Health, Job, JobState

Status = Literal["queued", "in_progress", "completed", "failed"]

# The weights' date of making is not known to the server; OpenAI's clients need an integer.
MODEL_CREATED = 0


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
    expires_at: int | None = None
    prompt: str
    seconds: str
    size: str
    error: VideoError | None
    remixed_from_video_id: str | None = None
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
    attempt: int = Field(description="1 and up; grows when a stage was lost or failed and is tried again")
    timings: dict[str, float] = Field(description="wall time in seconds by part of the work")


class VideoPage(BaseModel):
    """One page of videos. To get the next one, give last_id as `after`."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


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


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    limits: ModelLimits


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
    error: ErrorBody | None = None


def to_video(job: Job) -> Video:
    """OpenAI's view of a job."""
    spec = job.spec
    done = job.state is JobState.COMPLETED
    return Video(
        id=job.id,
        model=job.model,
        status=_status(job.state),
        progress=100 if done else max(0, min(99, int(job.progress * 100))),
        created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        prompt=spec.prompt,
        seconds=f"{round(spec.num_frames / spec.fps, 3):g}",
        size=f"{spec.width}x{spec.height}",
        error=_error(job),
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
        attempt=job.attempt,
        timings=job.seconds,
    )


def to_page(jobs: Sequence[Job], has_more: bool) -> VideoPage:
    return VideoPage(
        data=[to_video(job) for job in jobs],
        first_id=jobs[0].id if jobs else None,
        last_id=jobs[-1].id if jobs else None,
        has_more=has_more,
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
    return ModelList(data=[Model(id=model.name, created=MODEL_CREATED, owned_by="mochi-serve", limits=limits)])


def to_health(health: Health, storage: str) -> HealthReport:
    """The report; its error is set until each stage has a replica and the store answers."""
    devices = {stage: [_replica(info) for info in health.replicas.get(stage, ())] for stage in Stage}
    missing = [f"no {stage} replica is ready" for stage, replicas in devices.items() if not replicas]
    if storage != "ok":
        missing.append(storage)
    return HealthReport(
        status="unavailable" if missing else "ok",
        models=sorted({replica.model for replicas in devices.values() for replica in replicas}),
        devices=devices,
        queue={str(state): count for state, count in health.queue.items()},
        storage=storage,
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


def _status(state: JobState) -> Status:
    if state is JobState.QUEUED:
        return "queued"
    if state in RUNNING:
        return "in_progress"
    return "completed" if state is JobState.COMPLETED else "failed"


def _error(job: Job) -> VideoError | None:
    if job.error is not None:
        return VideoError(code=job.error.code, message=job.error.message)
    if job.state is JobState.CANCELLED:
        return VideoError(code="cancelled", message="The job was cancelled.")
    return None
