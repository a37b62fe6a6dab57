"""A job and its moves. No I/O.

queued -> encoding -> queued -> sampling -> queued -> decoding -> completed. `queued` means: waiting for a slot of
`stage`; a running state means: a replica holds the job's lease. From any running state a lost or failed attempt goes
back to `queued` at the same stage, and every live state may end in `failed` or `cancelled`.
"""

import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

from deployments.messages import ReplicaInfo, Stage, VideoSpec
from serve_app.errors import IllegalMoveError


class JobState(StrEnum):
    QUEUED = "queued"
    ENCODING = "encoding"
    SAMPLING = "sampling"
    DECODING = "decoding"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Tier(StrEnum):
    """How urgent a job is; a waiting one of a higher tier goes first. Highest first."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class Relation(StrEnum):
    """What a job took over from the one it was made from: REMIX all but the prompt, ENHANCE all but the steps."""

    REMIX = "remix"
    ENHANCE = "enhance"


@dataclass(frozen=True, slots=True)
class Origin:
    """The video that another was made from, which may be deleted by now."""

    video_id: str
    relation: Relation


TIERS = tuple(Tier)
DEFAULT_TENANT = "default"
Order = Literal["asc", "desc"]

RUNNING = frozenset({JobState.ENCODING, JobState.SAMPLING, JobState.DECODING})
FINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

_ENDS = {JobState.FAILED, JobState.CANCELLED}
MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(RUNNING | _ENDS),
    JobState.ENCODING: frozenset({JobState.QUEUED} | _ENDS),
    JobState.SAMPLING: frozenset({JobState.QUEUED} | _ENDS),
    JobState.DECODING: frozenset({JobState.QUEUED, JobState.COMPLETED} | _ENDS),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

NEXT_STAGE: dict[Stage, Stage | None] = {
    Stage.ENCODING: Stage.SAMPLING,
    Stage.SAMPLING: Stage.DECODING,
    Stage.DECODING: None,
}


def new_job_id() -> str:
    """`video_` and 32 hex digits: the time in milliseconds, so that ids made together lie together in an index, then
    80 random bits."""
    return f"video_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def check_move(old: JobState, new: JobState) -> None:
    """Raises IllegalMoveError unless the table allows old -> new."""
    if new not in MOVES[old]:
        allowed = ", ".join(sorted(MOVES[old])) or "none, it is final"
        raise IllegalMoveError(f"a job cannot go from {old} to {new}; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: a stable code and a text for people."""

    code: str
    message: str


class Place(NamedTuple):
    """Where a waiting or running job stands; a tuple, as thousands of them at a time go to the ingress replicas.

    position: jobs that go before it to a slot of its stage, None once it runs. starts_at, finishes_at: Unix seconds,
    forecast from measured step times; None as long as nothing was measured.
    """

    position: int | None
    starts_at: float | None
    finishes_at: float | None

    def for_job(self, job: "Job") -> "Place":
        """What of it holds for the job in its state now."""
        position = self.position if job.state is JobState.QUEUED else None
        starts_at = None if job.state is JobState.SAMPLING else self.starts_at
        return Place(position, starts_at, self.finishes_at)


@dataclass(frozen=True, slots=True)
class Move:
    """One entry of a job's history. at: Unix seconds. note: why, for people."""

    at: float
    state: JobState
    stage: Stage
    attempt: int
    note: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the registry tells it. Times are Unix seconds.

    stage: the stage it runs or waits for. attempt: 1 and up; grows when a stage was lost or failed.
    step: denoising steps done of spec.num_inference_steps. checkpoint_step: the step that a new attempt begins at.
    steps_run: denoising steps run in all, as reported; more than `step` only if some were lost and run again.
    device_s: seconds of devices spent on it in all, as reported. parks: how often it was parked.
    deaths: replicas that died in a row while it was at one place of its work; died_at: that place, as `progress`.
    moves: length of its history, 1 when it was accepted. origin: the job it was made from. webhook_url: who is told of
    its end. seconds: wall time by stage and part. place, preview_step: told by a registry, not kept; the second is the
    step of the newest preview, None without one. last_move: told by the write that made it, else None.
    """

    id: str
    model: str
    spec: VideoSpec
    state: JobState
    stage: Stage
    attempt: int
    created_at: float
    step: int = 0
    checkpoint_step: int = 0
    steps_run: int = 0
    progress: float = 0.0
    tenant: str = DEFAULT_TENANT
    tier: Tier = Tier.STANDARD
    device_s: float = 0.0
    parks: int = 0
    deaths: int = 0
    died_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None
    available_at: float = 0.0
    lease: str | None = None
    lease_owner: str | None = None
    lease_expires_at: float | None = None
    error: JobError | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    moves: int = 1
    origin: Origin | None = None
    webhook_url: str | None = None
    place: Place | None = None
    preview_step: int | None = None
    last_move: Move | None = field(default=None, compare=False)

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def suspect(self) -> bool:
        """A replica died with it, and it has not passed that place since."""
        return self.suspect_at(self.progress)

    def suspect_at(self, progress: float) -> bool:
        """`suspect`, if it is so far now."""
        return self.died_at is not None and progress <= self.died_at


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for a job, checked.

    idempotency_key: the client's own name for the request; within a day the same key of a tenant is the same job.
    fingerprint: of what was asked, so that another request under the same key is noticed.
    origin, webhook_url: as in Job.
    """

    job_id: str
    model: str
    spec: VideoSpec
    tenant: str = DEFAULT_TENANT
    tier: Tier = Tier.STANDARD
    idempotency_key: str | None = None
    fingerprint: str = ""
    origin: Origin | None = None
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A job that is durable. repeated: it was so before, by its id or its idempotency key."""

    job: Job
    repeated: bool


def first_move(at: float) -> Move:
    """The first entry of every history; it is in the job's row and nowhere else."""
    return Move(at, JobState.QUEUED, Stage.ENCODING, 1, "accepted")


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a listing holds; what is empty or None restricts nothing. Times are Unix seconds, created_after
    inclusive, created_before exclusive."""

    states: tuple[JobState, ...] = ()
    tenant: str | None = None
    created_after: float | None = None
    created_before: float | None = None

    def matches(self, job: Job) -> bool:
        """Whether the job is in the listing."""
        return (
            (not self.states or job.state in self.states)
            and self.tenant in (None, job.tenant)
            and (self.created_after is None or job.created_at >= self.created_after)
            and (self.created_before is None or job.created_at < self.created_before)
        )


EVERY_JOB = JobFilter()


@dataclass(frozen=True, slots=True)
class Usage:
    """Work of replicas for a job. Two readings of one replica are subtracted, parts of a job are added."""

    steps: int = 0  # denoising steps
    device_s: float = 0.0  # seconds of a device

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.steps + other.steps, self.device_s + other.device_s)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.steps - other.steps, self.device_s - other.device_s)


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of a listing. has_more: further jobs follow the last one here."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Health:
    """What the registry knows of the whole: announced replicas by stage, live jobs by state.

    database: "ok", or what is wrong with it.
    """

    replicas: dict[Stage, tuple[ReplicaInfo, ...]]
    queue: dict[JobState, int]
    database: str = "ok"


def overall_progress(stage: Stage, done: int, total: int) -> float:
    """Share of the whole job done, 0 to 1, from the share of its stage: sampling is nearly all of the work."""
    start, width = {Stage.ENCODING: (0.0, 0.02), Stage.SAMPLING: (0.02, 0.88), Stage.DECODING: (0.90, 0.10)}[stage]
    return start + width * (done / total if total else 0.0)


def retry_pause(attempt: int, first_s: float, maximum_s: float) -> float:
    """Seconds to wait before `attempt` (2 and up); doubles with each, up to a maximum."""
    return float(min(maximum_s, first_s * 2 ** max(0, attempt - 2)))
