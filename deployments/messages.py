"""What crosses processes between the registry and the workers: small frozen dataclasses, no tensors.

Tensors and videos travel through object storage under the keys below.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """The stages of a job in their order; the value is also the name of the job's running state."""

    ENCODING = "encoding"
    SAMPLING = "sampling"
    DECODING = "decoding"


class Directive(StrEnum):
    """What the registry answers to a report."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """All that determines a video.

    width, height: pixels, multiples of 16. num_frames: 6k + 1. fps: frames a second.
    seed: 0 to 2**63 - 1; the initial noise is drawn from it on the CPU in fp32.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    seed: int


@dataclass(frozen=True, slots=True)
class StageTask:
    """One stage of one job, given to one replica under one lease."""

    job_id: str
    lease: str
    stage: Stage
    attempt: int
    spec: VideoSpec


@dataclass(frozen=True, slots=True)
class Started:
    """The replica has begun. device: what it runs on, e.g. ``cpu`` or ``cuda:0 NVIDIA H100``."""

    replica: str
    device: str


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units: denoising steps while sampling, frames while decoding."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage's output is whole in object storage. seconds: wall time by part of the stage."""

    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """The stage could not be done; `transient` says whether another attempt may help."""

    code: str
    message: str
    transient: bool


Event = Started | Progress | Finished | Failed


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica's announcement of itself, repeated every few seconds.

    slots: how many tasks it works on at once.
    """

    replica: str
    stage: Stage
    slots: int
    device: str
    model: str


def prompt_embeds_key(job_id: str) -> str:
    """Object with the encoded prompt and negative prompt, written by the encoder."""
    return f"jobs/{job_id}/prompt_embeds.safetensors"


def latents_key(job_id: str) -> str:
    """Object with the final latents, written by the sampler."""
    return f"jobs/{job_id}/latents.safetensors"


def video_key(job_id: str) -> str:
    """The mp4, written by the decoder."""
    return f"videos/{job_id}.mp4"


def poster_key(job_id: str) -> str:
    """The poster image (WebP), written by the decoder before the mp4."""
    return f"videos/{job_id}.webp"
