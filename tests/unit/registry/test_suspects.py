"""Who is blamed for the death of a replica: a job that was alone in it, again and again, and nobody else."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deployments.messages import Directive, Finished, Parked, Progress, ReplicaInfo, Stage, StageTask, Started
from serve_app.config import JobSettings
from serve_app.errors import NoReplicaError, ReplicaDiedError
from serve_app.jobs import Job, JobState, Tier
from serve_app.registry.timing import DispatchTiming, RegistryTiming
from serve_app.scheduling.retries import MAX_DEATHS, REPLICA_DIED
from tests.support.registry.world import Call, Workers, World

STEPS = 20
DEADLY_STEP = 7
BOUND = MAX_DEATHS[REPLICA_DIED]


@dataclass
class Samplers(Workers):
    """Sampler replicas with several slots; a task goes to the one with most room. Encoders are one, and have room."""

    slots: dict[str, int] = field(default_factory=dict)
    at_work: dict[str, list[Call]] = field(default_factory=dict)  # by replica
    samples: asyncio.Queue[Call] = field(default_factory=asyncio.Queue)
    made: int = 0

    def add(self, slots: int) -> str:
        self.made += 1
        name = f"sampler-{self.made}"
        self.slots[name], self.at_work[name] = slots, []
        return name

    async def __call__(self, task: StageTask, accept: Callable[[str], bool]) -> None:
        if task.stage is not Stage.SAMPLING:
            return await super().__call__(task, accept)
        for name in sorted(self.slots, key=lambda name: len(self.at_work[name]) - self.slots[name]):
            if len(self.at_work[name]) < self.slots[name] and accept(name):
                call = Call(task, asyncio.get_running_loop().create_future())
                self.at_work[name].append(call)
                await self.samples.put(call)
                return await call.ended
        raise NoReplicaError(task.stage)

    def replica_of(self, call: Call) -> str:
        return next(name for name, calls in self.at_work.items() if call in calls)

    async def next_sample(self) -> Call | None:
        """One that a replica was sent and that has not died with it; None if there is none now."""
        while not self.samples.empty():
            call = await self.samples.get()
            if not call.ended.done():
                return call
        return None

    def neighbours(self, call: Call) -> set[str]:
        return {other.task.job_id for other in self.at_work[self.replica_of(call)] if other is not call}

    def end(self, call: Call) -> None:
        self.at_work[self.replica_of(call)].remove(call)
        call.ended.set_result(None)

    def kill(self, name: str, is_replaced: bool = True) -> list[str]:
        """The process ends, and another takes its place; gives the ids of the jobs in it."""
        slots = self.slots.pop(name)
        if is_replaced:
            self.add(slots)
        calls = self.at_work.pop(name)
        for call in calls:
            call.ended.set_exception(ReplicaDiedError(name))
        return [call.task.job_id for call in calls]


class Site(World):
    """A world with several sampler replicas, which announce themselves whenever something is waited for."""

    samplers: Samplers

    async def announce(self) -> None:
        await self.replicas(slots=100, stages=(Stage.ENCODING,))
        for name, slots in self.samplers.slots.items():
            await self.registry.announce(ReplicaInfo(name, Stage.SAMPLING, slots, "cpu", "mochi-1"), wait=False)

    async def waiting_for_sampler(self, *job_ids: str, tier: Tier = Tier.STANDARD) -> None:
        for job_id in job_ids:
            await self.encoded(job_id, tier=tier)

    async def begun(self) -> Call:
        """The next sample that a replica begins with."""
        async with asyncio.timeout(60):
            while (call := await self.samplers.next_sample()) is None:
                await self.announce()
                await asyncio.sleep(0.005)
        await self.started(call)
        return call

    async def started(self, call: Call) -> None:
        await self.report(call, Started(self.samplers.replica_of(call), "cpu"))

    async def settled(self) -> None:
        """The registry has had time to send what it would send."""
        for _ in range(30):
            await self.announce()
            await asyncio.sleep(0.005)

    async def to_be_sampled(self) -> list[Job]:
        """The jobs that wait for a sampler or have one."""
        jobs = (await self.registry.list_jobs(100)).jobs
        return [job for job in jobs if job.stage is Stage.SAMPLING and not job.final]

    async def done(self, call: Call) -> None:
        assert await self.report(call, Finished({"work": 0.1}, device_s=0.2)) is Directive.CONTINUE
        self.samplers.end(call)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    samplers = Samplers()
    settings = JobSettings(retry_pause_s=0.01, max_retry_pause_s=0.02, max_attempts=1)
    timing = RegistryTiming(dispatch=DispatchTiming(tick_s=0.02))
    site = Site(f"sqlite:///{tmp_path / 'jobs.db'}", settings, workers=samplers, timing=timing)
    site.samplers = samplers
    site.start()
    await site.replicas(slots=100, stages=(Stage.ENCODING,))
    yield site
    await site.stop()


async def test_after_a_death_in_company_each_is_tried_alone_until_it_has_passed_the_place(site: Site) -> None:
    await site.waiting_for_sampler("a", "b", "c")
    replica = site.samplers.add(3)
    for call in [await site.begun() for _ in range(3)]:
        await site.report(call, Progress(3, STEPS))
    assert sorted(site.samplers.kill(replica)) == ["a", "b", "c"]
    first = await site.begun()
    await site.settled()
    assert site.samplers.neighbours(first) == set()
    await site.report(first, Progress(3, STEPS))
    await site.settled()
    assert site.samplers.neighbours(first) == set(), "it has not passed the place yet"
    await site.report(first, Progress(4, STEPS))
    await site.settled()
    assert site.samplers.neighbours(first) == set(), "the others are suspects too, and wait for an empty replica"
    await site.waiting_for_sampler("d")
    await site.settled()
    assert site.samplers.neighbours(first) == set(), "which this one becomes when its jobs have ended"
    await site.done(first)
    assert site.samplers.neighbours(await site.begun()) == set()
    jobs = [await site.job(job_id) for job_id in "abc"]
    assert {(job.attempt, job.deaths) for job in jobs} == {(1, 1)}


async def test_others_join_a_job_that_has_passed_the_place(site: Site) -> None:
    await site.waiting_for_sampler("a")
    replica = site.samplers.add(2)
    await site.report(await site.begun(), Progress(3, STEPS))
    site.samplers.kill(replica)
    again = await site.begun()
    await site.waiting_for_sampler("b")
    await site.settled()
    assert site.samplers.neighbours(again) == set()
    await site.report(again, Progress(4, STEPS))
    assert (await site.begun()).task.job_id == "b"
    assert site.samplers.neighbours(again) == {"b"}


async def test_a_suspect_that_is_next_waits_for_one_replica_and_holds_up_no_other(site: Site) -> None:
    await site.waiting_for_sampler("a")
    lost = site.samplers.add(1)
    await site.begun()
    kept = [site.samplers.add(2), site.samplers.add(2)]
    await site.waiting_for_sampler("b", "c", "d")
    calls = [await site.begun() for _ in range(3)]
    site.samplers.kill(lost, is_replaced=False)
    await site.settled()
    lone, *crowd = sorted(calls, key=lambda call: len(site.samplers.neighbours(call)))
    cleared = site.samplers.replica_of(lone)
    await site.waiting_for_sampler("e")
    await site.settled()
    assert site.samplers.samples.empty(), "the slot beside it is kept free"
    await site.done(crowd[0])
    assert (await site.begun()).task.job_id == "e", "in the other replica"
    await site.done(lone)
    again = await site.begun()
    assert (again.task.job_id, site.samplers.replica_of(again)) == ("a", cleared)
    assert set(site.samplers.slots) == set(kept)


async def test_an_urgent_suspect_has_what_may_be_parked_make_room(site: Site) -> None:
    await site.waiting_for_sampler("urgent", tier=Tier.INTERACTIVE)
    lost = site.samplers.add(1)
    await site.begun()
    site.samplers.add(2)
    await site.waiting_for_sampler("long", "longer", tier=Tier.BATCH)
    calls = [await site.begun() for _ in range(2)]
    site.samplers.kill(lost, is_replaced=False)
    for call in calls:
        async with asyncio.timeout(60):
            while await site.report(call, Progress(2, STEPS)) is not Directive.PARK:
                await asyncio.sleep(0.005)
        await site.report(call, Parked(3, "asked"))
        site.samplers.end(call)
    assert (await site.begun()).task.job_id == "urgent"


async def test_what_happened_in_a_replica_that_had_not_begun_is_no_death(site: Site) -> None:
    await site.waiting_for_sampler("a")
    replica = site.samplers.add(1)
    await site.settled()
    site.samplers.kill(replica)
    await site.samplers.samples.get()
    await site.begun()
    job = await site.job("a")
    assert (job.attempt, job.deaths) == (1, 0)


@dataclass
class Fate:
    """What really happened to a job."""

    step: int = 0
    place: int = -1  # the furthest step at which a replica died with it
    alone_there: int = 0  # deaths of replicas that it had to itself before it passed that place


@pytest.mark.parametrize("seed", range(2))
async def test_whoever_is_killed_at_random_lives_and_who_kills_is_found(site: Site, seed: int) -> None:
    draw = random.Random(seed)
    fates = {name: Fate() for name in ("poison", "a", "b", "c", "d", "e", "f")}
    await site.waiting_for_sampler(*fates)
    for slots in (1, 2, 3):
        site.samplers.add(slots)
    kills = own_kills = 0

    def kill(name: str) -> None:
        calls = site.samplers.at_work[name]
        for call in calls:
            fate = fates[call.task.job_id]
            is_suspect = fate.step <= fate.place
            assert not is_suspect or len(calls) == 1, "a suspect has its replica to itself"
            fate.alone_there = fate.alone_there + 1 if is_suspect else 0
            fate.place, fate.step = max(fate.place, fate.step), 0
        site.samplers.kill(name)

    async with asyncio.timeout(120):
        while await site.to_be_sampled():
            await site.announce()
            await asyncio.sleep(0.002)
            while (begun := await site.samplers.next_sample()) is not None:
                await site.started(begun)
                fates[begun.task.job_id].step = 0
            for replica, call in [(name, call) for name, calls in site.samplers.at_work.items() for call in calls]:
                fate = fates[call.task.job_id]
                last = DEADLY_STEP if call.task.job_id == "poison" else STEPS
                fate.step = min(fate.step + draw.randint(1, 4), last)
                if replica not in site.samplers.slots:
                    continue  # the poison has just killed it
                if fate.step == STEPS:
                    await site.done(call)
                    continue
                await site.report(call, Progress(fate.step, STEPS))
                if call.task.job_id == "poison" and fate.step == DEADLY_STEP:
                    own_kills += 1
                    kill(replica)
            unlucky = draw.choice(list(site.samplers.slots))
            there = [fates[call.task.job_id] for call in site.samplers.at_work[unlucky]]
            if there and draw.random() < 0.3 and all(fate.alone_there < BOUND - 2 for fate in there):
                kills += 1
                kill(unlucky)
    assert kills > 0
    assert own_kills <= BOUND
    jobs = [await site.job(name) for name in fates]
    assert [job.id for job in jobs if job.state is JobState.FAILED] == ["poison"]
    assert jobs[0].error is not None and jobs[0].error.code == REPLICA_DIED
