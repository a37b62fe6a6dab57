"""A cluster in simulated time: replicas that start, work and stop, and the registry's order of jobs."""

import itertools
from collections.abc import Generator, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import simpy

from benchmarks.autoscaling_parts.policies import Policy, StageView
from benchmarks.autoscaling_parts.traffic import DAY_S, GPUS, SimulatedJob, Traffic
from deployments.messages import VIDEO_STAGES, Stage
from serve_app.config import SchedulingSettings
from serve_app.jobs import NEXT_STAGE, TIERS, Tier

# Our policy asks its registry each second, and Serve ten times; here it is a part of a start, or this at least.
DECIDE_EVERY_S = 5.0
DECISIONS_PER_START = 24
RESUME_S = 3.0  # a sample that was moved loses no step; its state is written and read
SLOTS = {Stage.ENCODING: 4, Stage.SAMPLING: 1, Stage.DECODING: 1}
SETTINGS = SchedulingSettings()

Process = Generator[Any, Any, None]


@dataclass(slots=True, eq=False)
class Replica:
    """One replica, from when it was asked for."""

    name: str
    stage: Stage
    asked_at: float
    is_ready: bool = False
    is_stopped: bool = False
    jobs: dict[SimulatedJob, Any] = field(default_factory=dict)  # with the process that works on each


@dataclass(slots=True)
class Outcome:
    """What a day cost, and how long its jobs waited."""

    paid_s: dict[Stage, float] = field(
        default_factory=lambda: dict.fromkeys(VIDEO_STAGES, 0.0)
    )  # of replicas, not of GPUs
    starting_s: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(VIDEO_STAGES, 0.0))  # in that
    starts: int = 0  # of samplers
    most_samplers: int = 0
    moved: int = 0  # samples that went to another replica because theirs was stopped
    waits: dict[Tier, list[float]] = field(default_factory=lambda: {tier: [] for tier in Tier})

    @property
    def gpu_s(self) -> float:
        return sum(GPUS[stage] * seconds for stage, seconds in self.paid_s.items())


class Cluster:
    """Runs a day.

    Args:
        traffic: its jobs; they are copied.
        policy: decides how many replicas there are.
        start_s: from asking for a replica until it takes jobs.
    """

    def __init__(self, traffic: Traffic, policy: Policy, start_s: float) -> None:
        self._env = simpy.Environment()
        self._arrivals = deepcopy(list(traffic.jobs))
        self._policy = policy
        self._start_s = start_s
        self._come = 0  # how many of them have come
        self._live: dict[SimulatedJob, None] = {}
        self._waiting: dict[Stage, list[SimulatedJob]] = {stage: [] for stage in VIDEO_STAGES}
        self._replicas: dict[Stage, list[Replica]] = {stage: [] for stage in VIDEO_STAGES}
        self._targets = dict.fromkeys(VIDEO_STAGES, 0)
        self._names = itertools.count()
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """The day, and what is left of it after midnight."""
        env = self._env
        env.process(self._arrive())
        env.process(self._decide())
        env.run(until=DAY_S)
        while self._live or any(self._replicas.values()):
            env.run(until=env.now + 300)
        return self._outcome

    def _arrive(self) -> Process:
        for job in self._arrivals:
            yield self._env.timeout(job.created_at - self._env.now)
            self._come += 1
            self._live[job] = None
            self._policy.note(job)
            self._wait(job, Stage.ENCODING)

    def _decide(self) -> Process:
        while True:
            jobs, coming = list(self._live), islice(self._arrivals, self._come, None)
            self._policy.look(jobs, coming, self._env.now)
            for stage in VIDEO_STAGES:
                self._set_target(stage, self._policy.replicas(self._view(stage)))
            yield self._env.timeout(max(DECIDE_EVERY_S, self._start_s / DECISIONS_PER_START))

    def _view(self, stage: Stage) -> StageView:
        now, replicas = self._env.now, self._replicas[stage]
        ready = [replica for replica in replicas if replica.is_ready]
        return StageView(
            stage=stage,
            now=now,
            running=[replica.name for replica in ready],
            busy=frozenset(replica.name for replica in ready if replica.jobs),
            starting_in_s=[max(0.0, r.asked_at + self._start_s - now) for r in replicas if not r.is_ready],
            target=self._targets[stage],
            slots=SLOTS[stage],
        )

    def _set_target(self, stage: Stage, target: int) -> None:
        replicas = self._replicas[stage]
        self._targets[stage] = target
        while len(replicas) < target:
            replicas.append(replica := Replica(f"{stage}-{next(self._names)}", stage, self._env.now))
            self._env.process(self._start(replica))
        # As Serve does where each is on a node of its own: what has not started, then the newest.
        leaving = [r for r in replicas if not r.is_ready] + [r for r in reversed(replicas) if r.is_ready]
        for replica in leaving[: max(0, len(replicas) - target)]:
            self._stop(replica)
        if stage is Stage.SAMPLING:
            self._outcome.most_samplers = max(self._outcome.most_samplers, len(replicas))

    def _start(self, replica: Replica) -> Process:
        self._outcome.starts += replica.stage is Stage.SAMPLING
        yield self._env.timeout(self._start_s)
        if not replica.is_stopped:
            replica.is_ready = True
            self._dispatch(replica.stage)

    def _stop(self, replica: Replica) -> None:
        replica.is_stopped = True
        self._replicas[replica.stage].remove(replica)
        if replica.stage is Stage.SAMPLING or not replica.jobs:
            self._outcome.moved += len(replica.jobs)
            for process in list(replica.jobs.values()):
                process.interrupt()
        if not replica.jobs or replica.stage is Stage.SAMPLING:
            self._pay(replica)

    def _pay(self, replica: Replica) -> None:
        paid_s = self._env.now - replica.asked_at
        self._outcome.paid_s[replica.stage] += paid_s
        self._outcome.starting_s[replica.stage] += min(paid_s, self._start_s)

    # Jobs

    def _wait(self, job: SimulatedJob, stage: Stage) -> None:
        job.stage, job.is_running, job.waits_since = stage, False, self._env.now
        self._waiting[stage].append(job)
        self._dispatch(stage)

    def _dispatch(self, stage: Stage) -> None:
        waiting = self._waiting[stage]
        for replica in self._with_room(stage):
            if not waiting:
                return
            self._begin(min(waiting, key=self._rank), replica)
        if stage is Stage.SAMPLING:
            self._preempt()

    def _with_room(self, stage: Stage) -> Iterator[Replica]:
        for replica in list(self._replicas[stage]):
            while replica.is_ready and len(replica.jobs) < SLOTS[stage] and self._waiting[stage]:
                yield replica

    def _rank(self, job: SimulatedJob) -> tuple[int, float]:
        promotions = int((self._env.now - job.waits_since) // SETTINGS.promote_after_s)
        return max(0, TIERS.index(job.tier) - promotions), job.created_at

    def _begin(self, job: SimulatedJob, replica: Replica) -> None:
        self._waiting[job.stage].remove(job)
        job.waited_s += self._env.now - job.waits_since
        job.is_running, job.runs_since = True, self._env.now
        replica.jobs[job] = None
        replica.jobs[job] = self._env.process(self._work(job, replica))

    def _work(self, job: SimulatedJob, replica: Replica) -> Process:
        stage = replica.stage
        try:
            yield self._env.timeout(job.seconds[stage])
        except simpy.Interrupt:
            job.seconds[stage] = max(1.0, job.seconds[stage] - (self._env.now - job.runs_since)) + RESUME_S
            del replica.jobs[job]
            self._wait(job, stage)
            return
        del replica.jobs[job]
        if replica.is_stopped and not replica.jobs:
            self._pay(replica)
        following = NEXT_STAGE[stage]
        if following is not None:
            self._wait(job, following)
        else:
            del self._live[job]
            self._outcome.waits[job.tier].append(job.waited_s)
        self._dispatch(stage)

    def _preempt(self) -> None:
        """Each interactive job that waits parks the sample of a lower tier that would hold its slot longest."""
        urgent = sum(job.tier is Tier.INTERACTIVE for job in self._waiting[Stage.SAMPLING])
        if not urgent:
            return
        held = [(job, process) for replica in self._replicas[Stage.SAMPLING] for job, process in replica.jobs.items()]
        lower = [
            (job, process)
            for job, process in held
            if job.tier is not Tier.INTERACTIVE and job.parks < SETTINGS.max_parks and process is not None
        ]
        lower.sort(key=lambda pair: (-TIERS.index(pair[0].tier), -pair[0].seconds[Stage.SAMPLING]))
        for job, process in lower[:urgent]:
            if process.is_alive and job.is_running:
                job.parks += 1
                job.is_running = False
                process.interrupt()
