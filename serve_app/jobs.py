"""A job and its moves: pure, no I/O.

queued -> encoding -> queued -> sampling -> queued -> decoding -> completed. `queued` means: waiting for a slot of
`stage`; a running state means: a replica holds the job's lease. From any running state a lost or failed attempt goes
back to `queued` at the same stage, and every live state may end in `failed` or `cancelled`.
"""

from dataclasses import dataclass, field
from enum import StrEnum

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


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the registry tells it. Times are Unix seconds.

    stage: the stage it runs or waits for. attempt: 1 and up; grows when a stage was lost or failed.
    step: denoising steps done of spec.num_inference_steps. checkpoint_step: the step that a new attempt begins at.
    steps_run: denoising steps run in all, as reported; more than `step` only if some were lost and run again.
    seconds: wall time by stage and part.
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
    started_at: float | None = None
    completed_at: float | None = None
    available_at: float = 0.0
    lease: str | None = None
    lease_owner: str | None = None
    lease_expires_at: float | None = None
    error: JobError | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of a listing. has_more: further jobs follow the last one here."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Health:
    """What the registry knows of the whole: announced replicas by stage, live jobs by state."""

    replicas: dict[Stage, tuple[ReplicaInfo, ...]]
    queue: dict[JobState, int]


def overall_progress(stage: Stage, done: int, total: int) -> float:
    """Share of the whole job done, 0 to 1, from the share of its stage: sampling is nearly all of the work."""
    start, width = {Stage.ENCODING: (0.0, 0.02), Stage.SAMPLING: (0.02, 0.88), Stage.DECODING: (0.90, 0.10)}[stage]
    return start + width * (done / total if total else 0.0)


def retry_pause(attempt: int, first_s: float, maximum_s: float) -> float:
    """Seconds to wait before `attempt` (2 and up); doubles with each, up to a maximum."""
    return float(min(maximum_s, first_s * 2 ** max(0, attempt - 2)))
