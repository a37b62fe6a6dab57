"""The registry without Ray: a real database that may fail, and workers played by the test."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate

from sqlalchemy import Connection

from deployments.errors import RegistryUnavailableError
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
from serve_app.config import JobSettings, RetentionSettings, SchedulingSettings
from serve_app.database.connection import Database, P, T
from serve_app.errors import NoReplicaError
from serve_app.jobs import Job, JobState, Submission, Tier
from serve_app.registry.actor import JobRegistry
from serve_app.registry.timing import RegistryTiming

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 1)
SETTINGS = JobSettings(retry_pause_s=0.01, max_attempts=3)
NEVER_S = 1e9
"""Replicas here are announced once: on a machine that is very busy they would be forgotten before anything was sent."""


@dataclass
class Faults:
    """What goes wrong with a database, by the function that is run; it outlives the database."""

    errors: dict[Any, Exception] = field(default_factory=dict)  # raised instead of running the function
    lost_answers: set[Any] = field(default_factory=set)  # run and committed once, and the connection is lost then
    calls: Counter[Any] = field(default_factory=Counter)

    def take_away(self, function: Any) -> None:
        """The function finds no database from now on."""
        self.errors[function] = RegistryUnavailableError("away on purpose")


class FlakyDatabase(Database):
    """A database with faults."""

    def __init__(self, url: str, faults: Faults) -> None:
        super().__init__(url)
        self.faults = faults

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.faults.calls[function] += 1
        if function in self.faults.errors:
            error = self.faults.errors[function]
            await asyncio.sleep(0.05)
            raise error
        result = await super().run(function, *args, **kwargs)
        if function in self.faults.lost_answers:
            self.faults.lost_answers.remove(function)
            raise RegistryUnavailableError("the connection was lost in the commit")
        return result


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

    async def __call__(self, task: StageTask, accept: Callable[[str], bool]) -> None:
        if self.refuse or not accept(f"{task.stage}-replica"):
            raise NoReplicaError(task.stage)
        call = Call(task, asyncio.get_running_loop().create_future())
        await self.sent.put(call)
        await call.ended

    async def next(self) -> Call:
        async with asyncio.timeout(300):
            return await self.sent.get()


@dataclass
class World:
    """A registry on a database that outlives it, its workers, and a wall clock."""

    url: str
    settings: JobSettings = SETTINGS
    scheduling: SchedulingSettings = SchedulingSettings()
    owner: str = "cluster-1"
    retention: RetentionSettings | None = None
    timing: RegistryTiming = RegistryTiming()
    workers: Workers = field(default_factory=Workers)
    faults: Faults = field(default_factory=Faults)
    clock_shift_s: float = 0.0
    registry: JobRegistry = field(init=False)
    database: FlakyDatabase = field(init=False)  # the registry's own

    def start(self) -> None:
        self.registry = JobRegistry(
            database_url=self.url,
            jobs=self.settings,
            scheduling=self.scheduling,
            owner=self.owner,
            send=self.workers,
            retention=self.retention,
            timing=replace(self.timing, forget_replica_s=NEVER_S),
            open_database=self._open_database,
            unix_time=lambda: time.time() + self.clock_shift_s,
        )

    def _open_database(self, url: str) -> FlakyDatabase:
        self.database = FlakyDatabase(url, self.faults)
        return self.database

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

    async def next_after_loss(self, slots: int = 1) -> Call:
        """The next call, while replicas announce themselves again and again as they do."""
        async with asyncio.timeout(300):
            while self.workers.sent.empty():
                await self.replicas(slots)
                await asyncio.sleep(0.01)
        return await self.workers.next()

    async def submit(
        self,
        job_id: str,
        tenant: str = "default",
        tier: Tier = Tier.STANDARD,
        cancel_after_s: float | None = None,
        **spec: Any,
    ) -> Job:
        submission = Submission(job_id, "mochi-1", replace(SPEC, **spec), tenant, tier, cancel_after_s=cancel_after_s)
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
