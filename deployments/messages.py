"""What crosses processes between the registry and the workers: small frozen dataclasses, no tensors.

Tensors and videos travel through object storage, under the keys of `deployments.keys`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar, Literal

from deployments.clip import ClipShape
from deployments.step_rules import DEFAULT_RULES, Quality, StepPlan, StepRules, step_plan


class Stage(StrEnum):
    """The stages of jobs; the value is also the name of the job's running state."""

    ENCODING = "encoding"
    SAMPLING = "sampling"
    DECODING = "decoding"
    EMBEDDING = "embedding"  # of a file of protein sequences


class JobKind(StrEnum):
    """What a job makes."""

    VIDEO = "video"
    PROTEINS = "proteins"


STAGES: Mapping[JobKind, tuple[Stage, ...]] = {
    JobKind.VIDEO: (Stage.ENCODING, Stage.SAMPLING, Stage.DECODING),
    JobKind.PROTEINS: (Stage.EMBEDDING,),
}
"""The stages of a job of each kind, in their order."""

VIDEO_STAGES = STAGES[JobKind.VIDEO]
STEPPED = frozenset({Stage.SAMPLING, Stage.EMBEDDING})
"""Stages that go by steps: each is counted, and between two of them a job can be parked and go on elsewhere."""


class Directive(StrEnum):
    """What the registry answers to a report."""

    CONTINUE = "continue"
    STOP = "stop"  # the job was cancelled, or the lease is another's
    PARK = "yield"  # let go of the sample, with its state in storage


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """A LoRA, by its name in the settings, and by how much its weights count: 1 is as they were trained."""

    name: str
    scale: float


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """All that determines a video."""

    kind: ClassVar[JobKind] = JobKind.VIDEO

    prompt: str
    negative_prompt: str
    width: int  # pixels, a multiple of 16
    height: int  # pixels, a multiple of 16
    num_frames: int  # 6k + 1
    fps: int  # frames a second
    num_inference_steps: int
    guidance_scale: float
    seed: int  # 0 to 2**63 - 1; the initial noise is drawn from it on the CPU in fp32
    exact: bool = False  # sampled in a batch of its own: bit-exact across runs on the same kind of device
    quality: Quality = "exact"  # as it was asked for; what it means is `rules`
    rules: StepRules = DEFAULT_RULES  # of the quality when the video was asked for: it stays when settings change
    lora: str | None = None  # the name of one in the settings, as it was asked for
    lora_scale: float = 1.0  # by how much it counts; 0 is as if there were none

    @property
    def steps(self) -> int:
        """Of its stage that goes by steps."""
        return self.num_inference_steps

    @property
    def clip(self) -> ClipShape:
        return ClipShape(self.width, self.height, self.num_frames)

    @property
    def plan(self) -> StepPlan:
        """What each of its denoising steps runs."""
        return step_plan(self.num_inference_steps, self.guidance_scale, self.rules)

    @property
    def alone(self) -> bool:
        """Whether it shares its passes with no other. In 8 bits a neighbour's last bits would come to be its third
        digit, where one of its numbers lies between two that e4m3 has."""
        return self.exact or self.rules.attention == "fp8"

    @property
    def lora_choice(self) -> LoraChoice | None:
        """The LoRA that it is sampled with; None also for one that does not count."""
        return LoraChoice(self.lora, self.lora_scale) if self.lora is not None and self.lora_scale else None

    def to_json(self) -> dict[str, Any]:
        """As it is kept in SQL, in work files and in fingerprints.

        Quality, rules and LoRA are left out where they are those of all videos made before there were any, whose
        records are so those of the same request today.
        """
        # Not by `asdict`, which copies what is never changed: each submit would spend a third of its write on it.
        values = {name: getattr(self, name) for name in _SPEC_FIELDS} | {"rules": self.rules.to_json()}
        if self.quality == "exact":
            del values["quality"]
        if not values["rules"]:
            del values["rules"]
        if self.lora is None:
            del values["lora"], values["lora_scale"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "VideoSpec":
        """What `to_json` made."""
        rules = values.get("rules")
        return cls(**{**values, "rules": StepRules(**rules) if rules else DEFAULT_RULES})


_SPEC_FIELDS = tuple(one.name for one in fields(VideoSpec))


@dataclass(frozen=True, slots=True)
class ProteinSpec:
    """All that determines the answers to a file of protein sequences, but for the file: its parts are in storage."""

    kind: ClassVar[JobKind] = JobKind.PROTEINS

    parts: int  # that the file was cut into; each is a step
    sequences: int
    tokens: int  # of all passes of the model, about
    options: Mapping[str, Any]  # what is wanted of each sequence, as requests for a few say it
    format: Literal["safetensors", "npz"] = "safetensors"  # of the answers

    @property
    def steps(self) -> int:
        """Of its stage that goes by steps."""
        return self.parts

    def to_json(self) -> dict[str, Any]:
        """As it is kept in SQL and in fingerprints."""
        return {"kind": self.kind.value, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ProteinSpec":
        """What `to_json` made."""
        return cls(**{name: value for name, value in values.items() if name != "kind"})


Spec = VideoSpec | ProteinSpec


def spec_from_json(values: Mapping[str, Any]) -> Spec:
    """What the `to_json` of either made; before there were two kinds, a video's told none."""
    return ProteinSpec.from_json(values) if values.get("kind") == JobKind.PROTEINS else VideoSpec.from_json(values)


@dataclass(frozen=True, slots=True)
class StageTask:
    """One stage of one job, given to one replica under one lease."""

    job_id: str
    lease: str
    stage: Stage
    attempt: int
    spec: Spec
    checkpoint_step: int = 0  # the step of the newest checkpoint in storage, 0 if there is none
    traceparent: str | None = None  # of the span that its work is a part of
    tenant: str | None = None  # whose job it is

    @property
    def video(self) -> VideoSpec:
        """The video that it is a part of; only a stage of videos asks."""
        assert isinstance(self.spec, VideoSpec)
        return self.spec


@dataclass(frozen=True, slots=True)
class Started:
    """The replica has begun."""

    replica: str
    device: str  # what it runs on, e.g. ``cpu`` or ``cuda:0 NVIDIA H100``


@dataclass(frozen=True, slots=True)
class Progress:
    """What a replica has done of its task so far."""

    done: int  # units: denoising steps while sampling, frames while decoding, parts while embedding
    total: int
    begun_at: int = 0  # where this replica began: the units done - begun_at are its own
    preview: bytes | None = None  # a small WebP of what the video looks like so far, a few times a job
    device_s: float = 0.0  # seconds of the device that this replica spent; samples of one batch share its time
    passes: float = 0.0  # of the model, that this replica ran for it; samples of one batch share them likewise


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """What was done is whole in object storage."""

    step: int  # steps done


@dataclass(frozen=True, slots=True)
class Parked:
    """The replica let go of a job; what was done is whole in storage."""

    step: int  # steps done
    reason: str  # for people
    device_s: float = 0.0  # as in Progress
    passes: float = 0.0  # as in Progress


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage's output is whole in object storage."""

    seconds: dict[str, float] = field(default_factory=dict)  # wall time by part of the stage
    device_s: float = 0.0  # as in Progress
    passes: float = 0.0  # as in Progress


@dataclass(frozen=True, slots=True)
class Failed:
    """The stage could not be done."""

    code: str  # a stable word, see `deployments.errors`
    message: str  # for people
    transient: bool  # whether another attempt may help


@dataclass(frozen=True, slots=True)
class InputUnusable:
    """What the stage before left is gone, damaged, or another model's or job's: it must be made again."""

    reason: str  # for people


Event = Started | Progress | Checkpointed | Parked | Finished | Failed | InputUnusable


@dataclass(frozen=True, slots=True)
class Report:
    """An event of one lease; a replica sends those of all its tasks together."""

    job_id: str
    lease: str
    event: Event


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica's announcement of itself, repeated every few seconds."""

    replica: str  # the id by which Serve's routers know it
    stage: Stage
    slots: int  # how many tasks it works on at once, 0 if it takes no more
    device: str  # as in Started
    model: str
    max_tokens: int | None = None  # of the largest sample that fits its memory, if known; see ClipShape.tokens
    revision: str | None = None  # of the model, see `models.store.source_revision`
    problem: str | None = None  # why it takes no tasks though it is not told to leave, for people


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the classifier says of a prompt."""

    label: str  # the likeliest of the kinds to be refused
    probability: float  # from 0 to 1, that the prompt is of one of them
