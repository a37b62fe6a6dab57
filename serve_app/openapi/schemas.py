"""The shapes of the answers: OpenAI's objects with our own fields beside them."""

from typing import Literal

from pydantic import BaseModel, Field

from deployments.messages import Stage
from deployments.settings import Dimension
from deployments.step_rules import Quality
from serve_app.jobs import JobState, Tier

Status = Literal["queued", "in_progress", "completed", "failed"]


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class VideoDraftReason(BaseModel):
    """Why a video is a draft though its quality was left to the server, and what it would have been."""

    wait_s: float = Field(description="how long it would have waited, beside its own work, as forecast at acceptance")
    limit_s: float = Field(description="how long it might have")
    quality: Quality
    num_inference_steps: int
    guidance_scale: float


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
    seconds: str = Field(
        description="the length that was asked for, or, if none was, that of the video as a whole number of at least 1"
    )
    size: str
    duration_s: float = Field(description="the exact length: num_frames / fps")
    requested_seconds: str | None = Field(description="the length that was asked for, if the video has another one")
    requested_size: str | None = Field(
        description="the size or shape that was asked for, if the video has another size"
    )
    ignored_parameters: list[str] = Field(description="fields of the request that were known and made no difference")
    error: VideoError | None
    remixed_from_video_id: str | None
    enhanced_from_video_id: str | None = Field(description="the video that this is a better one of: more steps")
    negative_prompt: str
    num_frames: int
    fps: int
    quality: Quality = Field(
        description="how its steps are computed: exact as the model's authors do, or with less work"
    )
    requested_quality: Literal["auto"] | None = Field(description="'auto' if the quality was left to the server")
    draft_reason: VideoDraftReason | None = Field(
        description="why it is a draft, if it was not asked for as one; null otherwise"
    )
    num_inference_steps: int
    guidance_scale: float
    lora: str | None = Field(description="the LoRA that it is made with")
    lora_scale: float | None = Field(description="by how much it counts; null without one")
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
    estimated_start_at: int | None = Field(description="when a sampler takes it, or then a decoder, as forecast")
    estimated_completion_at: int | None = Field(description="when it is completed, as forecast from measured times")
    gpu_seconds: float = Field(description="device time spent on it so far, all attempts and stages together")
    parks: int = Field(description="how often it was parked for a video of a higher priority; it lost no step")
    attempt: int = Field(description="1 and up; grows when a stage was lost or failed and is tried again")
    preview_step: int | None = Field(description="after which step the newest preview was made, if there is one")
    webhook_url: str | None = Field(description="who is told when it is completed, failed or cancelled")
    cancel_at: int | None = Field(description="not completed by then, it is cancelled; null: it has no deadline")
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
    max_picture_pixels: int | None = Field(description="bound of width x height; null: none of its own")
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
    quality: Quality


class OfferedQuality(BaseModel):
    """A quality that may be asked for, and what is taken with it for a field that a request leaves out."""

    name: Quality
    num_inference_steps: int
    guidance_scale: float


class OfferedLora(BaseModel):
    """A LoRA that may be asked for."""

    name: str
    description: str = Field(description="for people; may be empty")


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    limits: ModelLimits
    defaults: ModelDefaults
    qualities: list[OfferedQuality] = Field(description="best first")
    draft_when_wait_over_s: float | None = Field(
        description="a request for the quality 'auto' becomes a draft where it would wait for longer; null: none does"
    )
    loras: list[OfferedLora]


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
    revision: str | None = Field(
        None,
        description="of the model: the hub's commit, or a name for its state in the store; null for a folder",
    )
    problem: str | None = Field(None, description="why it takes no jobs, if it should; null while it does")


class StartingReplicas(BaseModel):
    """Replicas of a stage that were asked for and are not there yet."""

    count: int
    ready_at: int = Field(description="Unix seconds: when the first one is likely there, by the starts before it")


class HealthReport(BaseModel):
    """Whether videos are accepted and made."""

    status: Literal["ok", "starting", "unavailable"] = Field(
        description="ok: videos are made now; starting: accepted, and wait for replicas; unavailable: not accepted"
    )
    version: str = Field(description="of mochi-serve")
    models: list[str]
    devices: dict[Stage, list[Replica]]
    queue: dict[str, int] = Field(description="jobs that wait or run, by state")
    storage: str = Field(description="'ok', or what is wrong with the object store")
    database: str = Field(description="'ok', or what is wrong with the database of jobs")
    starting: dict[Stage, StartingReplicas] = Field(description="the stages whose replicas are starting, and when")
    waiting_for: str | None = Field(description="why no video can be made now though it is accepted; null if one can")
    error: ErrorBody | None = Field(None, description="what is missing, with a 503")
