"""What waits and what is worked on, as GET /v1/status answers. Pure."""

from collections import Counter
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, Field

from deployments.messages import Stage, VideoSpec
from serve_app.jobs import Tier
from serve_app.openapi.schemas import Replica, StartingReplicas
from serve_app.openapi.views import percent, to_replica, to_starting
from serve_app.scheduling.activity import Activity, Running
from serve_app.version import VERSION


class WaitingJobs(BaseModel):
    """Jobs of one tenant and tier that wait for one stage."""

    stage: Stage
    tier: Tier
    tenant: str
    count: int
    oldest_at: int = Field(description="Unix seconds: when the oldest of them was accepted")
    gpu_seconds: float = Field(description="seconds of devices that they still need until they end, estimated")


class RunningJob(BaseModel):
    """A job that a replica works on."""

    id: str
    stage: Stage
    tier: Tier
    tenant: str
    replica: str | None = Field(description="null while it is on its way to one")
    progress: int = Field(description="percent of the whole job")
    step: int = Field(description="steps done: denoising steps, of a file of proteins its parts")
    num_inference_steps: int = Field(description="steps in all")
    step_s: float | None = Field(
        description="of a stage that goes by steps: seconds of the device that one takes, by what was measured; null "
        "where nothing was"
    )
    size: str | None = Field(description="of a video")
    num_frames: int | None = Field(description="of a video")


class WorkingReplica(Replica):
    """A model replica, and how much of it is at work."""

    stage: Stage
    busy: int = Field(description="jobs that it works on, those of other tenants too")


class Gpu(BaseModel):
    """A GPU that replicas work on, as its driver tells; null: it does not."""

    uuid: str
    memory_total: int | None = Field(description="bytes")
    memory_used: int | None = Field(description="bytes, by all processes")
    utilization: float | None = Field(description="part of the last second or less with a kernel at work, 0 to 1")
    power_w: float | None
    temperature_c: float | None


class ServerStatus(BaseModel):
    """What waits and what is worked on now. With a key: the jobs of its tenant alone."""

    object: Literal["server.status"] = "server.status"
    version: str = Field(description="of mochi-serve")
    at: int = Field(description="Unix seconds")
    waiting: list[WaitingJobs]
    running: list[RunningJob]
    replicas: list[WorkingReplica]
    gpus: list[Gpu] = Field(description="those that were told of within the last half minute")
    starting: dict[Stage, StartingReplicas] = Field(description="the stages whose replicas are starting, and when")


def to_status(activity: Activity, at: float, tenant: str | None = None) -> ServerStatus:
    """What waits and what is worked on.

    Args:
        at: Unix seconds.
        tenant: whose jobs are told; None: all. How busy a replica is tells of all, and names nobody.
    """
    busy = Counter(running.replica for running in activity.running)
    return ServerStatus(
        version=VERSION,
        at=int(at),
        waiting=[
            WaitingJobs(
                **asdict(waiting) | {"oldest_at": int(waiting.oldest_at), "gpu_seconds": round(waiting.gpu_seconds, 3)}
            )
            for waiting in activity.waiting
            if tenant in (None, waiting.tenant)
        ],
        running=[_running_job(running) for running in activity.running if tenant in (None, running.job.tenant)],
        replicas=[
            WorkingReplica(stage=stage, busy=busy[info.replica], **to_replica(info).model_dump())
            for stage in Stage
            for info in activity.replicas.get(stage, ())
        ],
        gpus=[Gpu.model_validate(asdict(gpu)) for gpu in activity.gpus],
        starting=to_starting(activity.starting),
    )


def _running_job(running: Running) -> RunningJob:
    job = running.job
    video = job.spec if isinstance(job.spec, VideoSpec) else None
    return RunningJob(
        id=job.id,
        stage=job.stage,
        tier=job.tier,
        tenant=job.tenant,
        replica=running.replica,
        progress=percent(job),
        step=job.step,
        num_inference_steps=job.spec.steps,
        step_s=running.step_s,
        size=None if video is None else f"{video.width}x{video.height}",
        num_frames=None if video is None else video.num_frames,
    )
