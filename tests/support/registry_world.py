"""The registry without Ray: a real database, and workers played by the test."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from deployments.messages import (
    Directive,
    Event,
    Finished,
    Parked,
    ReplicaInfo,
    Report,
    Stage,
    StageTask,
    VideoSpec,
)
from serve_app.config import JobSettings, SchedulingSettings
from serve_app.errors import NoReplicaError
from serve_app.jobs import Job, JobState, Submission, Tier
from serve_app.registry.actor import JobRegistry

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 1)
SETTINGS = JobSettings(retry_pause_s=0.01, max_attempts=3)


@dataclass
class Call:
    """A task that was sent to a replica; the test decides how it ends."""

    task: StageTask
    ended: asyncio.Future[None]


@dataclass
class Workers:
    """Stands where the replicas are: takes what the registry sends."""

    sent: asyncio.Queue[Call] = field(default_factory=asyncio.Queue)
    refuse: bool = False

    async def __call__(self, task: StageTask, chosen: Callable[[str], None]) -> None:
        if self.refuse:
            raise NoReplicaError(task.stage)
        chosen(f"{task.stage}-replica")
        call = Call(task, asyncio.get_running_loop().create_future())
        await self.sent.put(call)
        await call.ended

    async def next(self) -> Call:
        async with asyncio.timeout(300):
            return await self.sent.get()


@dataclass
class World:
    """A registry on a database that outlives it, and its workers."""

    url: str
    settings: JobSettings = SETTINGS
    scheduling: SchedulingSettings = SchedulingSettings()
    owner: str = "cluster-1"
    workers: Workers = field(default_factory=Workers)
    registry: JobRegistry = field(init=False)

    def start(self) -> None:
        self.registry = JobRegistry(self.url, self.settings, self.scheduling, self.owner, self.workers)

    async def stop(self) -> None:
        await self.registry.close()

    async def restart(self) -> None:
        """As after kill -9: nothing in memory is left, calls in flight belong to nobody."""
        await self.stop()
        self.workers = Workers()
        self.start()

    async def replicas(self, slots: int = 1, stages: Iterable[Stage] = Stage) -> None:
        for stage in stages:
            info = ReplicaInfo(f"{stage}-replica", stage, slots, "cpu", "mochi-1")
            await self.registry.announce(info, wait=False)

    async def next_after_loss(self, slots: int = 1, patience_s: float = 20) -> Call:
        """The next call, while replicas announce themselves again and again as they do."""
        async with asyncio.timeout(patience_s):
            while self.workers.sent.empty():
                await self.replicas(slots)
                await asyncio.sleep(0.01)
        return await self.workers.next()

    async def submit(self, job_id: str, tenant: str = "default", tier: Tier = Tier.STANDARD, **spec: Any) -> Job:
        submission = Submission(job_id, "mochi-1", replace(SPEC, **spec), tenant, tier)
        return (await self.registry.submit(submission)).job

    async def job(self, job_id: str) -> Job:
        job = await self.registry.get(job_id)
        assert job is not None
        return job

    async def reaches(self, job_id: str, state: JobState) -> Job:
        async with asyncio.timeout(300):
            while (job := await self.job(job_id)).state is not state:
                await asyncio.sleep(0.01)
        return job

    async def finish(self, call: Call) -> None:
        assert await self.report(call, Finished({"work": 0.1}, device_s=0.2)) is Directive.CONTINUE
        call.ended.set_result(None)

    async def report(self, call: Call, event: Event) -> Directive:
        return await self.registry.report(Report(call.task.job_id, call.task.lease, event))

    async def park(self, call: Call, step: int) -> None:
        """The replica lets go of a sample, as it was asked."""
        await self.report(call, Parked(step, "asked"))
        call.ended.set_result(None)

    async def encoded(self, job_id: str, **submit: Any) -> None:
        """A job that waits for a sampler or has one; an encoder must be there."""
        await self.submit(job_id, **submit)
        call = await self.workers.next()
        assert (call.task.job_id, call.task.stage) == (job_id, Stage.ENCODING)
        await self.finish(call)
