"""Examples in the OpenAPI document, made as the answers are made: they have every field, within the model's bounds."""

from typing import Any

from pydantic import BaseModel

from deployments.messages import ReplicaInfo, Stage, VideoSpec
from deployments.settings import ModelSettings
from serve_app.config import AppSettings
from serve_app.jobs import Health, Job, JobPage, JobState, Move, Place
from serve_app.openapi.schemas import DeletedVideo, to_health, to_history, to_model_list, to_page, to_video

VIDEO_ID = "video_018f6e2a7c1d0daf29c941694ac1871b"
PROMPT = "a red circle moving right"
_AT = 1_760_000_000.0


def answer_examples(settings: AppSettings) -> dict[str, Any]:
    """By the name of the schema."""
    model, job = settings.model, _job(settings.model)
    moves = (
        Move(_AT + 0.12, JobState.QUEUED, Stage.ENCODING, 1, "accepted"),
        Move(_AT + 0.15, JobState.ENCODING, Stage.ENCODING, 1, "claimed"),
    )
    replicas: dict[Stage, tuple[ReplicaInfo, ...]] = {
        stage: (ReplicaInfo(f"{stage}#1", stage, 4, "cuda:0", model.name),) for stage in Stage
    }
    examples: tuple[BaseModel, ...] = (
        to_video(job, settings.retention),
        to_page(JobPage((job,), has_more=False), settings.retention),
        to_history(moves),
        to_model_list(model),
        to_health(Health(replicas, {JobState.QUEUED: 1}), "ok"),
        DeletedVideo(id=VIDEO_ID),
    )
    return {type(example).__name__: example.model_dump(mode="json") for example in examples}


def body_examples(schema: type[BaseModel], model: ModelSettings) -> dict[str, Any]:
    """The least that a request may say, and more; by what they show."""
    names = {info.alias or name: name for name, info in schema.model_fields.items()}
    least = {alias: PROMPT for alias, name in names.items() if schema.model_fields[name].is_required()}
    steps = model.num_inference_steps
    more = {"size": f"{model.width.default}x{model.height.default}", "seed": 7, "priority": "batch"}
    more |= {} if "seed" in names else {"num_inference_steps": steps.maximum}
    return {
        "least": {"summary": "all else as the server has it", "value": least},
        "more": {"summary": "some settings of its own", "value": least | {k: v for k, v in more.items() if k in names}},
    }


def _job(model: ModelSettings) -> Job:
    spec = VideoSpec(
        prompt=PROMPT,
        negative_prompt="",
        width=model.width.default,
        height=model.height.default,
        num_frames=model.num_frames.default,
        fps=model.fps.default,
        num_inference_steps=model.num_inference_steps.default,
        guidance_scale=model.guidance_scale,
        seed=7,
    )
    place = Place(0, _AT, _AT + 9)
    return Job(VIDEO_ID, model.name, spec, JobState.QUEUED, Stage.ENCODING, 1, _AT, place=place)
