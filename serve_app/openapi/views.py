"""The answers to clients: a job, a page of jobs and the server as the API shows them. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from deployments.clip import nearest_length
from deployments.messages import VIDEO_STAGES, ReplicaInfo, Stage
from deployments.settings import ModelSettings
from serve_app.config import RetentionSettings
from serve_app.errors import ApiError
from serve_app.jobs import RUNNING, Health, Job, JobPage, JobState, Move, Place, Relation, expires_at
from serve_app.openapi.schemas import (
    ErrorBody,
    HealthReport,
    Model,
    ModelDefaults,
    ModelLimits,
    ModelList,
    OfferedLora,
    OfferedQuality,
    ProgressEvent,
    Replica,
    StartingReplicas,
    StateEvent,
    Status,
    Video,
    VideoDraftReason,
    VideoError,
    VideoHistory,
    VideoMove,
    VideoPage,
)
from serve_app.version import VERSION

# OpenAI's clients need an integer, and the server does not know when the weights were made.
MODEL_CREATED = 0

_NO_PLACE = Place(None, None, None)


def to_video(job: Job, retention: RetentionSettings) -> Video:
    """OpenAI's view of a job.

    Args:
        retention: for how long jobs are kept.
    """
    spec = job.video
    place = job.place or _NO_PLACE
    origin = job.origin
    return Video(
        id=job.id,
        model=job.model,
        status=job_status(job.state),
        progress=100 if job.state is JobState.COMPLETED else percent(job),
        created_at=int(job.created_at),
        completed_at=unix_seconds(job.completed_at),
        expires_at=expires_at(job, retention),
        prompt=spec.prompt,
        # OpenAI's clients take it for a whole number.
        seconds=job.requested.seconds or str(max(1, round(spec.num_frames / spec.fps))),
        size=f"{spec.width}x{spec.height}",
        duration_s=round(spec.num_frames / spec.fps, 6),
        requested_seconds=_other_seconds(job),
        requested_size=job.requested.size,
        ignored_parameters=list(job.requested.ignored),
        error=job_error(job),
        remixed_from_video_id=origin.video_id if origin and origin.relation is Relation.REMIX else None,
        enhanced_from_video_id=origin.video_id if origin and origin.relation is Relation.ENHANCE else None,
        negative_prompt=spec.negative_prompt,
        num_frames=spec.num_frames,
        fps=spec.fps,
        quality=spec.quality,
        requested_quality=job.requested.quality,
        draft_reason=None if job.requested.draft is None else VideoDraftReason(**asdict(job.requested.draft)),
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        lora=spec.lora,
        lora_scale=None if spec.lora is None else spec.lora_scale,
        seed=spec.seed,
        exact=spec.exact,
        state=job.state,
        step=job.step,
        checkpoint_step=job.checkpoint_step,
        steps_run=job.steps_run,
        priority=job.tier,
        tenant=job.tenant,
        queue_position=place.position,
        estimated_start_at=unix_seconds(place.starts_at),
        estimated_completion_at=unix_seconds(place.finishes_at),
        gpu_seconds=round(job.device_s, 3),
        parks=job.parks,
        attempt=job.attempt,
        preview_step=None if job.final else job.preview_step,
        webhook_url=job.webhook_url,
        cancel_at=unix_seconds(job.cancel_at),
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
    place = job.place or _NO_PLACE
    return ProgressEvent(
        video_id=job.id,
        state=job.state,
        progress=percent(job),
        step=job.step,
        num_inference_steps=job.video.num_inference_steps,
        queue_position=place.position,
        estimated_start_at=unix_seconds(place.starts_at),
        estimated_completion_at=unix_seconds(place.finishes_at),
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


def to_model_list(model: ModelSettings, draft_when_wait_over_s: float | None) -> ModelList:
    limits = ModelLimits(
        width=model.width,
        height=model.height,
        num_frames=model.num_frames,
        fps=model.fps,
        num_inference_steps=model.num_inference_steps,
        max_guidance_scale=model.max_guidance_scale,
        max_pixels=model.max_pixels,
        max_picture_pixels=model.max_picture_pixels,
        max_prompt_chars=model.max_prompt_chars,
        max_prompt_tokens=model.max_sequence_length,
    )
    defaults = ModelDefaults(
        width=model.width.default,
        height=model.height.default,
        num_frames=model.num_frames.default,
        fps=model.fps.default,
        num_inference_steps=model.steps_of(model.quality),
        enhanced_steps=model.enhanced_steps,
        guidance_scale=model.guidance_of(model.quality),
        quality=model.quality,
    )
    qualities = [
        OfferedQuality(name=name, num_inference_steps=model.steps_of(name), guidance_scale=model.guidance_of(name))
        for name in model.offered
    ]
    served = Model(
        id=model.name,
        created=MODEL_CREATED,
        owned_by="mochi-serve",
        limits=limits,
        defaults=defaults,
        qualities=qualities,
        draft_when_wait_over_s=draft_when_wait_over_s,
        loras=[OfferedLora(name=name, description=lora.description) for name, lora in model.loras.items()],
    )
    return ModelList(data=[served])


def to_health(health: Health, storage: str, must_be_ready: bool = False) -> HealthReport:
    """The report; it has an error unless videos are accepted, which takes the store and the database.

    Args:
        storage: "ok", or what is wrong with the object store.
        must_be_ready: it has an error, too, until each stage has a replica that works.
    """
    devices = {stage: [to_replica(info) for info in health.replicas.get(stage, ())] for stage in VIDEO_STAGES}
    absent = [reason for stage, replicas in devices.items() if (reason := _why_not_ready(stage, replicas))]
    broken = [state for state in (storage, health.database) if state != "ok"]
    error = None
    if broken or (absent and must_be_ready):
        message = f"Not ready: {'; '.join([*absent, *broken])}."
        error = ErrorBody(message=message, type="server_error", param=None, code="not_ready")
    return HealthReport(
        status="unavailable" if broken else "starting" if absent else "ok",
        version=VERSION,
        models=sorted({replica.model for replicas in devices.values() for replica in replicas}),
        devices=devices,
        queue={str(state): count for state, count in health.queue.items()},
        storage=storage,
        database=health.database,
        starting=to_starting(health.starting),
        waiting_for="; ".join(absent) or None,
        error=error,
    )


def to_error_body(error: ApiError) -> ErrorBody:
    return ErrorBody(message=error.message, type=error.type, param=error.param, code=error.code)


def states_of(status: Status) -> tuple[JobState, ...]:
    """The states that OpenAI's status stands for."""
    return tuple(state for state in JobState if job_status(state) == status and state is not JobState.EMBEDDING)


def to_starting(starting: Mapping[Stage, Sequence[float]]) -> dict[Stage, StartingReplicas]:
    """starting: when each replica is likely there, Unix seconds."""
    return {
        stage: StartingReplicas(count=len(times), ready_at=math.ceil(min(times))) for stage, times in starting.items()
    }


def to_replica(info: ReplicaInfo) -> Replica:
    """A replica as it announced itself."""
    return Replica(
        replica=info.replica,
        device=info.device,
        model=info.model,
        slots=info.slots,
        max_tokens=info.max_tokens,
        revision=info.revision,
        problem=info.problem,
    )


def _why_not_ready(stage: Stage, replicas: Sequence[Replica]) -> str | None:
    """None if a replica of the stage takes jobs, or would if it were not leaving."""
    if any(replica.problem is None for replica in replicas):
        return None
    problems = sorted({replica.problem for replica in replicas if replica.problem})
    return ": ".join(filter(None, [f"no {stage} replica is ready", "; ".join(problems)]))


def job_status(state: JobState) -> Status:
    if state is JobState.QUEUED:
        return "queued"
    if state in RUNNING:
        return "in_progress"
    return "completed" if state is JobState.COMPLETED else "failed"


def _other_seconds(job: Job) -> str | None:
    """The length that was asked for, if the video is not as near to it as frames allow."""
    asked, spec = job.requested.seconds, job.video
    return asked if asked and nearest_length(float(asked) * spec.fps) != spec.num_frames else None


def percent(job: Job) -> int:
    """Of the whole job, 0 to 99: only what is completed has 100."""
    return max(0, min(99, int(job.progress * 100)))


def unix_seconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def job_error(job: Job) -> VideoError | None:
    if job.error is not None:
        return VideoError(code=job.error.code, message=job.error.message)
    if job.state is JobState.CANCELLED:
        return VideoError(code="cancelled", message="The job was cancelled.")
    return None
