"""A job and its moves. No I/O.

queued -> encoding -> queued -> sampling -> queued -> decoding -> completed, of a video; of a file of
proteins queued -> embedding -> completed. `queued` means: waiting for a slot of `stage`; a running
state means: a replica holds the job's lease. From any running
state a lost or failed attempt goes back to `queued` at the same stage, one whose input cannot be
used at the stage before, and every live state may end in `failed` or `cancelled`.
"""

import math
import secrets
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, NamedTuple, Self

from deployments.logs.ids import log_ids
from deployments.messages import STAGES, JobKind, ReplicaInfo, Spec, Stage, VideoSpec
from deployments.step_rules import Quality
from deployments.tracing.context import TraceContext, context_of_job
from serve_app.config import DAY_S, RetentionSettings
from serve_app.errors import IllegalMoveError


class JobState(StrEnum):
    QUEUED = "queued"
    ENCODING = "encoding"
    SAMPLING = "sampling"
    DECODING = "decoding"
    EMBEDDING = "embedding"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Tier(StrEnum):
    """How urgent a job is, the highest first: a waiting job of a higher tier goes first."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class Relation(StrEnum):
    """What a job took over from the video that it was made from."""

    REMIX = "remix"  # all but the prompt
    ENHANCE = "enhance"  # all but the number of steps


@dataclass(frozen=True, slots=True)
class Origin:
    """The video that another was made from, which may be deleted by now."""

    video_id: str
    relation: Relation


@dataclass(frozen=True, slots=True)
class DraftReason:
    """Why a video that was asked for as `auto` is a draft, and what it would have been."""

    wait_s: float  # that was forecast when it was accepted, beside its own work
    limit_s: float  # `scheduling.draft_when_wait_over_s` then
    quality: Quality  # that it would have had, as the next two
    num_inference_steps: int
    guidance_scale: float


@dataclass(frozen=True, slots=True)
class Requested:
    """What a request said where its job is otherwise, so that answers tell both."""

    seconds: str | None = None  # the length that was asked for, as written; None if none was
    size: str | None = None  # the size that was asked for, if another one is made
    ignored: tuple[str, ...] = ()  # fields that were understood and make no difference here
    quality: Literal["auto"] | None = None  # the quality was left to the server; None: it was not
    draft: DraftReason | None = None  # None: it is no draft, or was asked for as one


AS_MADE = Requested()
"""Of a request that says exactly what its job is."""

TIERS = tuple(Tier)
DEFAULT_TENANT = "default"
Order = Literal["asc", "desc"]

RUNNING = frozenset({JobState.ENCODING, JobState.SAMPLING, JobState.DECODING, JobState.EMBEDDING})
FINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

_ENDS = {JobState.FAILED, JobState.CANCELLED}
MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(RUNNING | _ENDS),
    JobState.ENCODING: frozenset({JobState.QUEUED} | _ENDS),
    JobState.SAMPLING: frozenset({JobState.QUEUED} | _ENDS),
    JobState.DECODING: frozenset({JobState.QUEUED, JobState.COMPLETED} | _ENDS),
    JobState.EMBEDDING: frozenset({JobState.QUEUED, JobState.COMPLETED} | _ENDS),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

NEXT_STAGE: dict[Stage, Stage | None] = {
    stage: after for stages in STAGES.values() for stage, after in zip(stages, (*stages[1:], None), strict=True)
}

STAGE_BEFORE: dict[Stage, Stage] = {after: stage for stage, after in NEXT_STAGE.items() if after is not None}
"""The stage whose output each takes; the first one takes none."""


STAGES_FROM: dict[Stage, tuple[Stage, ...]] = {
    stage: stages[n:] for stages in STAGES.values() for n, stage in enumerate(stages)
}
"""Each stage and those that follow it."""


def new_job_id(kind: JobKind = JobKind.VIDEO) -> str:
    """The kind, `_` and 32 hex digits: the time in milliseconds, then 80 random bits.

    So ids that are made together lie together in an index.
    """
    return f"{kind}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def check_move(old: JobState, new: JobState) -> None:
    """Raises IllegalMoveError unless the table allows old -> new."""
    if new not in MOVES[old]:
        allowed = ", ".join(sorted(MOVES[old])) or "none, it is final"
        raise IllegalMoveError(f"a job cannot go from {old} to {new}; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed."""

    code: str  # stable, for programs
    message: str  # for people


class Place(NamedTuple):
    """Where a waiting or running job stands in the queue.

    It is a tuple, because thousands of them at a time go to the ingress replicas. The two times are
    forecasts from measured step times; they are None as long as nothing was measured.
    """

    position: int | None  # jobs that go before it to a slot of its stage; None once it runs
    starts_at: float | None  # Unix seconds
    finishes_at: float | None  # Unix seconds

    def for_job(self, job: "Job") -> "Place":
        """The part of it that means something for the job in its state now."""
        position = self.position if job.state is JobState.QUEUED else None
        starts_at = None if job.state is JobState.SAMPLING else self.starts_at
        return Place(position, starts_at, self.finishes_at)


@dataclass(frozen=True, slots=True)
class Move:
    """One entry of a job's history: what the job was from then on."""

    at: float  # Unix seconds
    state: JobState
    stage: Stage
    attempt: int
    note: str  # the reason, for people


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the registry knows it. All times are Unix seconds."""

    id: str
    model: str
    spec: Spec
    state: JobState
    stage: Stage  # the stage that it runs or waits for
    attempt: int  # 1 and up; grows when a stage failed or nothing was heard of it, not when its replica died
    created_at: float
    step: int = 0  # steps done, of spec.steps
    checkpoint_step: int = 0  # a new attempt begins at this step
    steps_run: int = 0  # steps run in all; more than `step` if some were lost and run again
    progress: float = 0.0  # of the whole job, 0 to 1
    tenant: str = DEFAULT_TENANT
    tier: Tier = Tier.STANDARD
    device_s: float = 0.0  # seconds of devices that it used in all
    parks: int = 0  # how often it was parked
    remakes: int = 0  # how often it went back to a stage whose output could not be used
    deaths: int = 0  # replicas that died in a row before it passed one place; after the first: that it had to itself
    died_at: float | None = None  # that place, as `progress`: the furthest where one died
    started_at: float | None = None
    completed_at: float | None = None  # when it ended, however
    available_at: float = 0.0  # a waiting job may not be claimed before
    lease: str | None = None  # the token of the replica's hold on it; None while it waits and when it has ended
    lease_owner: str | None = None  # the cluster whose registry granted the lease
    lease_expires_at: float | None = None
    error: JobError | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # wall time, by "stage.part"
    moves: int = 1  # the length of its history
    origin: Origin | None = None  # the video that it was made from
    webhook_url: str | None = None  # gets an event when the job ends
    requested: Requested = AS_MADE
    cancel_at: float | None = None  # not completed by then, it is cancelled
    traceparent: str | None = None  # of the request that asked for it; see `trace`
    place: Place | None = None  # not in SQL: filled in by a registry
    preview_step: int | None = None  # the step of its newest preview; not in SQL
    last_move: Move | None = field(default=None, compare=False)  # only from the write that made it

    @property
    def kind(self) -> JobKind:
        return self.spec.kind

    @property
    def video(self) -> VideoSpec:
        """What is made, if it is a video: whoever asks knows that."""
        assert isinstance(self.spec, VideoSpec)
        return self.spec

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def trace(self) -> TraceContext:
        """The span of the request that asked for it."""
        return context_of_job(self.id, self.traceparent)

    def in_log(self) -> AbstractContextManager[None]:
        """What is logged within it is of this job."""
        return log_ids(job=self.id, tenant=self.tenant, trace=lambda: self.trace)

    @property
    def span(self) -> TraceContext:
        """That of the job itself, from its acceptance to its end."""
        return self.trace.at(self.id, "job")

    @property
    def move_span(self) -> TraceContext:
        """That of what it has been since its last move: waiting for a stage, or held by a replica."""
        return self.trace.at(self.id, self.moves)

    @property
    def suspect(self) -> bool:
        """A replica died with it, and it has not passed that place since."""
        return self.suspect_at(self.progress)

    def suspect_at(self, progress: float) -> bool:
        """Whether a replica died with it, and it has not passed that place if it is so far now."""
        return self.died_at is not None and progress <= self.died_at


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked request for a job."""

    job_id: str
    model: str
    spec: Spec
    tenant: str = DEFAULT_TENANT
    tier: Tier = Tier.STANDARD
    idempotency_key: str | None = None  # the client's name for the request: for a day, one job a key and tenant
    fingerprint: str = ""  # of what is asked for, so that another request under the same key is noticed
    sent_fingerprint: str | None = None  # of what was sent, which stays the same when defaults change
    origin: Origin | None = None  # the video that it is made from
    webhook_url: str | None = None  # gets an event when the job ends
    requested: Requested = AS_MADE
    cancel_after_s: float | None = None  # not completed so long after its acceptance, it is cancelled
    draft: VideoSpec | None = None  # may be made in place of `spec` where that would wait for long
    traceparent: str | None = None  # as in Job

    @property
    def video(self) -> VideoSpec:
        """As of Job."""
        assert isinstance(self.spec, VideoSpec)
        return self.spec

    def as_draft(self, wait_s: float, limit_s: float) -> Self:
        """The same for its draft.

        Args:
            wait_s: how long it would wait, as forecast.
            limit_s: how long it may.
        """
        full = self.video
        assert self.draft is not None
        reason = DraftReason(
            wait_s=round(wait_s, 1),
            limit_s=limit_s,
            quality=full.quality,
            num_inference_steps=full.num_inference_steps,
            guidance_scale=full.guidance_scale,
        )
        return replace(self, spec=self.draft, draft=None, requested=replace(self.requested, draft=reason))

    def accepted(self, at: float) -> Job:
        """Its job, as it is accepted at this time (Unix seconds)."""
        return Job(
            id=self.job_id,
            model=self.model,
            spec=self.spec,
            state=JobState.QUEUED,
            stage=STAGES[self.spec.kind][0],
            attempt=1,
            created_at=at,
            available_at=at,
            tenant=self.tenant,
            tier=self.tier,
            origin=self.origin,
            webhook_url=self.webhook_url,
            requested=self.requested,
            cancel_at=None if self.cancel_after_s is None else at + self.cancel_after_s,
            traceparent=self.traceparent,
            last_move=first_move(at, self.spec.kind),
        )

    def repeats(self, fingerprint: str, sent_fingerprint: str | None) -> bool:
        """Whether this is the request with these fingerprints, sent again; an old one has no second."""
        is_sent_again = sent_fingerprint is not None and sent_fingerprint == self.sent_fingerprint
        return is_sent_again or fingerprint == self.fingerprint


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The answer to a submission: the job is durable."""

    job: Job
    repeated: bool  # an earlier submission with this id or idempotency key made the job


def first_move(at: float, kind: JobKind = JobKind.VIDEO) -> Move:
    """The first entry of every history; it is in the job's row and nowhere else."""
    return Move(at, JobState.QUEUED, STAGES[kind][0], 1, "accepted")


def expires_at(job: Job, retention: RetentionSettings) -> int | None:
    """When an ended job is gone to clients, Unix seconds as they are told; None: it has not ended, or never."""
    days = retention.completed_days if job.state is JobState.COMPLETED else retention.failed_days
    return None if job.completed_at is None or days is None else math.floor(job.completed_at + days * DAY_S)


@dataclass(frozen=True, slots=True)
class Expiry:
    """Which jobs have expired at a moment: they are gone to clients, deleted already or not. All in seconds."""

    before: float = 0.0  # Unix seconds: a job has expired whose end and what it is kept for come to less
    completed_s: float | None = None  # how long completed jobs are kept; None: for ever
    failed_s: float | None = None  # how long failed and cancelled jobs are kept; None: for ever

    @classmethod
    def at(cls, retention: RetentionSettings, now: float) -> Self:
        """Those whose `expires_at`, which is a whole second, is not after `now`."""
        kept_s = [None if days is None else days * DAY_S for days in (retention.completed_days, retention.failed_days)]
        return cls(math.floor(now) + 1, *kept_s)

    def has_passed(self, job: Job) -> bool:
        """Whether the job has expired."""
        kept_s = self.completed_s if job.state is JobState.COMPLETED else self.failed_s
        return job.completed_at is not None and kept_s is not None and job.completed_at + kept_s < self.before


NOTHING_EXPIRES = Expiry()


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs of a kind a listing holds. A field that is empty or None restricts nothing."""

    states: tuple[JobState, ...] = ()
    tenant: str | None = None
    created_after: float | None = None  # Unix seconds, inclusive
    created_before: float | None = None  # Unix seconds, exclusive
    expiry: Expiry = NOTHING_EXPIRES  # jobs that have expired are in no listing
    kind: JobKind = JobKind.VIDEO

    def matches(self, job: Job) -> bool:
        """Whether the job is in the listing."""
        return (
            not self.expiry.has_passed(job)
            and job.kind is self.kind
            and (not self.states or job.state in self.states)
            and self.tenant in (None, job.tenant)
            and (self.created_after is None or job.created_at >= self.created_after)
            and (self.created_before is None or job.created_at < self.created_before)
        )


EVERY_VIDEO = JobFilter()


@dataclass(frozen=True, slots=True)
class Usage:
    """Work of replicas for a job. Readings of a replica are subtracted, parts of a job are added."""

    steps: int = 0  # of the stage that goes by steps
    device_s: float = 0.0  # seconds of a device
    passes: float = 0.0  # of the model; a pass counts in parts for the samples in it, as its seconds do

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.steps + other.steps, self.device_s + other.device_s, self.passes + other.passes)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.steps - other.steps, self.device_s - other.device_s, self.passes - other.passes)


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of a listing."""

    jobs: tuple[Job, ...]
    has_more: bool  # further jobs follow the last one of this page


@dataclass(frozen=True, slots=True)
class Health:
    """What the registry knows of the whole installation."""

    replicas: dict[Stage, tuple[ReplicaInfo, ...]]  # those that announce themselves
    queue: dict[JobState, int]  # the number of live jobs
    database: str = "ok"  # or what is wrong with it
    database_detail: str = ""  # with addresses and paths, which clients are not told
    starting: dict[Stage, tuple[float, ...]] = field(default_factory=dict)  # when each is likely there, Unix seconds


_PROGRESS = {
    Stage.ENCODING: (0.0, 0.02),
    Stage.SAMPLING: (0.02, 0.88),
    Stage.DECODING: (0.90, 0.10),
    Stage.EMBEDDING: (0.0, 1.0),
}
"""Where each stage begins in its job, and how much of it it is."""


def overall_progress(stage: Stage, done: int, total: int) -> float:
    """Share of the whole job done, 0 to 1; sampling is nearly all of the work."""
    start, width = _PROGRESS[stage]
    return start + width * (done / total if total else 0.0)


def retry_pause(attempt: int, first_s: float, maximum_s: float) -> float:
    """Seconds to wait before `attempt` (2 and up); doubles with each, up to a maximum."""
    return float(min(maximum_s, first_s * 2 ** max(0, attempt - 2)))
