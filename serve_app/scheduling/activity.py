"""What waits and what is worked on at a moment, as operators see it. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from deployments.messages import ReplicaInfo, Stage
from serve_app.jobs import TIERS, Job, Tier


@dataclass(frozen=True, slots=True)
class Waiting:
    """Jobs of one tenant and tier that wait for one stage."""

    stage: Stage
    tier: Tier
    tenant: str
    count: int
    oldest_at: float  # Unix seconds: when the oldest was accepted
    gpu_seconds: float  # that they still need until they end, estimated


@dataclass(frozen=True, slots=True)
class Running:
    """A job that a replica works on, or is sent to."""

    job: Job  # with what its replica has reported
    replica: str | None  # None: none was chosen yet
    step_s: float | None  # of sampling: what a denoising step takes, by what was measured; None where nothing was


@dataclass(frozen=True, slots=True)
class Gpu:
    """What NVML says of a GPU, or of a MIG instance; what it does not tell is None."""

    uuid: str
    memory_total: float | None  # bytes
    memory_used: float | None  # bytes, by all processes
    utilization: float | None  # part of the last second or less with a kernel at work
    power_w: float | None
    temperature_c: float | None


@dataclass(frozen=True, slots=True)
class Activity:
    """Of a whole installation, as one registry has it in memory."""

    waiting: tuple[Waiting, ...]  # by stage, then tier, then tenant
    running: tuple[Running, ...]  # the oldest first
    replicas: dict[Stage, tuple[ReplicaInfo, ...]]  # those that announce themselves
    starting: dict[Stage, tuple[float, ...]] = field(default_factory=dict)  # as in Health
    gpus: tuple[Gpu, ...] = ()  # those that replicas watch


def count_waiting(jobs: Iterable[Job], gpu_seconds: Callable[[Job], float]) -> tuple[Waiting, ...]:
    """The jobs by stage, tier and tenant. gpu_seconds: that a job still needs until it ends."""
    found: dict[tuple[int, int, str], Waiting] = {}
    stages = list(Stage)
    for job in jobs:
        key = (stages.index(job.stage), TIERS.index(job.tier), job.tenant)
        so_far = found.get(key)
        oldest_at = job.created_at if so_far is None else min(so_far.oldest_at, job.created_at)
        count = 1 if so_far is None else so_far.count + 1
        needed = gpu_seconds(job) + (0.0 if so_far is None else so_far.gpu_seconds)
        found[key] = Waiting(job.stage, job.tier, job.tenant, count, oldest_at, needed)
    return tuple(found[key] for key in sorted(found))
