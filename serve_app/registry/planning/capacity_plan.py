"""What the autoscaling policy asks: how many replicas of a stage of videos the live jobs need."""

import math
import time
from typing import NamedTuple

from deployments.errors import RegistryUnavailableError
from deployments.messages import JobKind, ReplicaInfo, Stage, VideoSpec
from serve_app.database.meta import read_arrivals, read_start_times, write_arrivals, write_start_times
from serve_app.jobs import Job, Tier
from serve_app.registry.leases import Lease
from serve_app.registry.planning.pace import Pace
from serve_app.registry.state import RegistryState, log
from serve_app.scheduling.scaling.capacity import Fleet, LiveJob, StageNeed, StageState, demand, replicas_needed
from serve_app.scheduling.scaling.headroom import Arrivals, slots_kept

# How often what came is written: a registry that is killed forgets no more than that.
ARRIVALS_KEPT_EVERY_S = 60.0


class CapacityPlan:
    """The need of each stage, how long its replicas take to start, and how often jobs come."""

    def __init__(self, state: RegistryState) -> None:
        self._state = state
        self._jobs: list[LiveJob] = []
        self._needed: dict[Stage, int] = {}  # replicas, by `_jobs`
        self._pace = Pace()  # of both: to read a long queue and to deal it to replicas takes a while
        self._has_restored = False
        self._has_measured = False  # what is not in SQL yet
        self._arrivals = Arrivals({tier: state.scheduling.target_wait_s.of(tier) for tier in Tier})
        self._arrivals_due_at = -math.inf  # when those that came are to be written
        self._has_come = False  # a job, since they were

    def note_arrival(self, job: Job) -> None:
        """A new job was accepted."""
        if not isinstance(job.spec, VideoSpec):  # the devices of proteins are always there
            return
        seconds = _seconds(_work(self._state, job.spec), job.spec.num_inference_steps)
        self._arrivals.note(job.tier, seconds, job.created_at)
        self._has_come = True

    def note_ready(self, info: ReplicaInfo, now: float) -> None:
        """A replica that was not there before takes jobs."""
        start_s = self._state.start_times.note_ready(info.stage, now)
        if start_s is not None:
            self._has_measured = True
            log.info(f"{info.stage}: replica {info.replica} is there; a start takes {start_s:.0f} s")

    def starting(self) -> dict[Stage, tuple[float, ...]]:
        """When the replicas that were asked for are likely there, Unix seconds, by stage."""
        now, unix_now = time.monotonic(), self._state.unix_time()
        found = {stage: self._state.start_times.starting_in_s(stage, now) for stage in Stage}
        return {stage: tuple(unix_now + s for s in seconds) for stage, seconds in found.items() if seconds}

    async def need(self, asked: StageState) -> StageNeed:
        """How many replicas a stage needs.

        Args:
            asked: what Serve keeps now.
        """
        await self._keep_what_was_learned()
        state, stage, now = self._state, asked.stage, time.monotonic()
        state.wanted[stage] = asked
        there = state.replicas.alive(stage, now)
        state.start_times.set_target(stage, asked.target, len(there), now)
        # A replica that is there and takes nothing is one of those that Serve counts.
        useless = sum(info.problem is not None for info in there)
        fleet = Fleet(
            running=sum(info.slots > 0 for info in there),
            starting=state.start_times.starting_in_s(stage, now),
            slots=asked.slots,
            start_s=state.start_times.start_s(stage),
            minimum=asked.minimum,
            maximum=asked.maximum,
            kept=self._kept(stage),
        )
        needed = self._replicas_needed(stage, fleet)
        busy = frozenset(lease.replica for lease in state.leases.of_stage(stage) if lease.replica is not None)
        return StageNeed(min(asked.maximum, needed + useless), fleet.start_s, busy)

    def _kept(self, stage: Stage) -> int:
        """Slots for urgent jobs; where none is parked for them, beside those of others."""
        state = self._state
        load = self._arrivals.urgent(stage, state.start_times.start_s(stage), state.unix_time())
        kept = slots_kept(load, state.scheduling.headroom_s)
        if kept and not state.scheduling.preemption:
            kept += sum(lease.job.tier is not Tier.INTERACTIVE for lease in state.leases.of_stage(stage))
        return kept

    async def _keep_what_was_learned(self) -> None:
        """Read it once, and write what is new; it can be learned again."""
        state, now = self._state, time.monotonic()
        try:
            if not self._has_restored:
                start_times = await state.database.run(read_start_times)
                arrivals = await state.database.run(read_arrivals)
                if not self._has_restored:  # each stage asks, at the same time
                    self._has_restored = True
                    state.start_times.restore(start_times)
                    self._arrivals.restore(arrivals)
            if self._has_measured:
                self._has_measured = False
                await state.database.run(write_start_times, seconds=dict(state.start_times.measured))
            if self._has_come and now >= self._arrivals_due_at:
                self._has_come, self._arrivals_due_at = False, now + ARRIVALS_KEPT_EVERY_S
                await state.database.run(write_arrivals, sums=dict(self._arrivals.sums))
        except RegistryUnavailableError as error:
            log.warning(f"start times of replicas and how often jobs come are not kept: {error}")

    def _replicas_needed(self, stage: Stage, fleet: Fleet) -> int:
        """By the live jobs as they were a moment ago, and the fleet when it was first asked for since then."""
        if self._pace.is_due():
            with self._pace.doing():
                self._jobs = _read_jobs(self._state)
            self._needed = {}
        if stage not in self._needed:
            with self._pace.going_on():
                demands = [found for job in self._jobs if (found := demand(job, stage)) is not None]
                self._needed[stage] = replicas_needed(demands, fleet, self._state.scheduling.activation_gpu_s)
        return self._needed[stage]


def _read_jobs(state: RegistryState) -> list[LiveJob]:
    works: dict[tuple[object, ...], _Work] = {}
    now = state.unix_time()
    live = [(lease.job, lease) for lease in state.leases.all()] + [(job, None) for job in state.waiting.jobs()]
    return [_live_job(state, job, lease, now, works) for job, lease in live if job.kind is JobKind.VIDEO]


class _Work(NamedTuple):
    """Seconds of a device of jobs of one kind."""

    encoding_s: float
    step_s: float
    beside_s: float  # of sampling
    decoding_s: float


def _live_job(
    state: RegistryState, job: Job, lease: Lease | None, now: float, works: dict[tuple[object, ...], _Work]
) -> LiveJob:
    spec = job.video
    kind = (spec.clip, spec.num_inference_steps, spec.guidance_scale, spec.rules, spec.exact, spec.lora)
    if kind not in works:
        works[kind] = _work(state, spec)
    work = works[kind]
    steps_left = spec.num_inference_steps - job.step if lease is None else lease.steps_left
    used_s = 0.0 if lease is None else lease.reported.device_s
    target_s = state.scheduling.target_wait_s.of(job.tier)
    return LiveJob(
        stage=job.stage,
        is_running=lease is not None,
        wait_left_s=target_s - max(0.0, now - job.created_at - job.device_s - used_s),
        cancelled_in_s=math.inf if job.cancel_at is None else job.cancel_at - now,
        seconds=_seconds(work, steps_left),
    )


def _seconds(work: _Work, steps_left: int) -> dict[Stage, float]:
    return {
        Stage.ENCODING: work.encoding_s,
        Stage.SAMPLING: work.beside_s + work.step_s * max(1, steps_left),
        Stage.DECODING: work.decoding_s,
    }


def _work(state: RegistryState, spec: VideoSpec) -> _Work:
    costs, steps = state.costs, spec.num_inference_steps
    return _Work(
        encoding_s=costs.estimate(Stage.ENCODING, spec, steps),
        step_s=costs.estimate(Stage.SAMPLING, spec, steps) / steps,
        beside_s=costs.held_s(Stage.SAMPLING, spec),
        decoding_s=costs.estimate(Stage.DECODING, spec, steps),
    )
