"""What crosses processes between the registry and the workers: small frozen dataclasses, no tensors.

Tensors and videos travel through object storage, under the keys of `deployments.keys`.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from deployments.clip import ClipShape


class Stage(StrEnum):
    """The stages of a job in their order; the value is also the name of the job's running state."""

    ENCODING = "encoding"
    SAMPLING = "sampling"
    DECODING = "decoding"


class Directive(StrEnum):
    """What the registry answers to a report."""

    CONTINUE = "continue"
    STOP = "stop"
    PARK = "yield"


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """All that determines a video.

    width, height: pixels, multiples of 16. num_frames: 6k + 1. fps: frames a second.
    seed: 0 to 2**63 - 1; the initial noise is drawn from it on the CPU in fp32.
    exact: sampled in a batch of its own, so that it is bit-exact across runs on the same kind of device.
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
    exact: bool = False

    @property
    def clip(self) -> ClipShape:
        return ClipShape(self.width, self.height, self.num_frames)


@dataclass(frozen=True, slots=True)
class StageTask:
    """One stage of one job, given to one replica under one lease.

    checkpoint_step: the denoising step of the newest checkpoint in storage, 0 if there is none.
    """

    job_id: str
    lease: str
    stage: Stage
    attempt: int
    spec: VideoSpec
    checkpoint_step: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The replica has begun. device: what it runs on, e.g. ``cpu`` or ``cuda:0 NVIDIA H100``."""

    replica: str
    device: str


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units: denoising steps while sampling, frames while decoding.

    begun_at: where this replica began: the steps done - begun_at are its own.
    preview: a small WebP of what the video looks like so far, a few times a job.
    device_s: seconds of the device that this replica spent on the task so far; samples of one batch share its time.
    """

    done: int
    total: int
    begun_at: int = 0
    preview: bytes | None = None
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The sample's state after `step` denoising steps is whole in object storage."""

    step: int


@dataclass(frozen=True, slots=True)
class Parked:
    """The replica let go of a sample after `step` steps; its state is whole in storage.

    reason: for people. device_s: as in Progress.
    """

    step: int
    reason: str
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage's output is whole in object storage.

    seconds: wall time by part of the stage. device_s: as in Progress.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """The stage could not be done; `transient` says whether another attempt may help."""

    code: str
    message: str
    transient: bool


Event = Started | Progress | Checkpointed | Parked | Finished | Failed


@dataclass(frozen=True, slots=True)
class Report:
    """An event of one lease; a replica sends those of all its tasks together."""

    job_id: str
    lease: str
    event: Event


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica's announcement of itself, repeated every few seconds.

    slots: how many tasks it works on at once, 0 if it takes no more.
    max_tokens: the largest sample (tokens = latent frames x height/16 x width/16) that fits its memory, if known.
    """

    replica: str
    stage: Stage
    slots: int
    device: str
    model: str
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """probability: from 0 to 1, that the prompt is of the kinds to be refused. label: the likeliest of them."""

    label: str
    probability: float
