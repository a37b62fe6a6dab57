"""What decides how many replicas there are: ours, as it is served, Serve's default by Ray's own code, or all always."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from types import SimpleNamespace
from typing import Any, Protocol

from benchmarks.autoscaling_parts.traffic import DAY_S, SimulatedJob
from deployments.messages import VIDEO_STAGES, Stage
from serve_app.config import SchedulingSettings
from serve_app.jobs import Tier
from serve_app.scheduling.scaling.capacity import Fleet, LiveJob, StageNeed, demand, replicas_needed
from serve_app.scheduling.scaling.headroom import Arrivals, slots_kept
from serve_app.scheduling.scaling.scaler import BUSY_PATIENCE_S, Scaler

KEPT_FOR_S = 30.0  # how many slots are kept changes slowly


@dataclass(frozen=True, slots=True)
class StageView:
    """What a policy sees of a stage at a moment."""

    stage: Stage
    now: float
    running: Sequence[str]  # names, the oldest first
    busy: frozenset[str]
    starting_in_s: Sequence[float]
    target: int
    slots: int


class Policy(Protocol):
    """Of all stages."""

    def note(self, job: SimulatedJob) -> None:
        """A job came."""
        ...

    def look(self, jobs: Sequence[SimulatedJob], coming: Iterable[SimulatedJob], now: float) -> None:
        """Before the stages are asked for.

        Args:
            jobs: all live ones, of every stage.
            coming: those that have not come yet, by their arrival; only an oracle reads them.
        """
        ...

    def replicas(self, view: StageView) -> int:
        """Of a stage."""
        ...


@dataclass(slots=True)
class OurPolicy:
    """`capacity.replicas_needed`, `headroom` and `Scaler`, as the registry and Serve's controller call them.

    Args:
        targets_s: of each tier.
        start_s: of a replica.
        maximum: of the replicas of a stage.
        worth_s: what is kept ready for a job that would be late.
        hold_s: replicas stay so long without need; None as it is served.
        foresight_s: jobs are known so long before they come.
        patience_s: as `busy_patience_s` of `Scaler`.
    """

    targets_s: dict[Tier, float]
    start_s: float
    maximum: int
    worth_s: float = SchedulingSettings().headroom_s
    hold_s: float | None = None
    foresight_s: float = 0.0
    patience_s: float = BUSY_PATIENCE_S
    _arrivals: Arrivals = field(init=False)
    _scalers: dict[Stage, Scaler] = field(init=False)
    _kept: dict[Stage, tuple[float, int]] = field(default_factory=dict)  # the slots, and since when
    _jobs: list[tuple[LiveJob, float]] = field(default_factory=list)  # with the seconds until it comes

    def __post_init__(self) -> None:
        self._arrivals = Arrivals(self.targets_s)
        self._scalers = {stage: Scaler(self.hold_s, self.patience_s) for stage in VIDEO_STAGES}

    def note(self, job: SimulatedJob) -> None:
        self._arrivals.note(job.tier, job.seconds, job.created_at)

    def look(self, jobs: Sequence[SimulatedJob], coming: Iterable[SimulatedJob], now: float) -> None:
        self._jobs = [(self._live(job, now), 0.0) for job in jobs]
        if self.foresight_s:
            soon = takewhile(lambda job: job.created_at <= now + self.foresight_s, coming)
            self._jobs += [(self._live(job, job.created_at), job.created_at - now) for job in soon]

    def _live(self, job: SimulatedJob, now: float) -> LiveJob:
        wait_left_s = self.targets_s[job.tier] - job.waited_until(now)
        return LiveJob(job.stage, job.is_running, wait_left_s, math.inf, job.left_at(now))

    def replicas(self, view: StageView) -> int:
        demands = []
        for job, in_s in self._jobs:
            found = demand(job, view.stage)
            if found is not None:
                demands.append(
                    replace(found, comes_in_s=found.comes_in_s + in_s, due_in_s=found.due_in_s + in_s)
                    if in_s
                    else found
                )
        kept_at, kept = self._kept.get(view.stage, (-math.inf, 0))
        if view.now - kept_at >= KEPT_FOR_S:
            kept = slots_kept(self._arrivals.urgent(view.stage, self.start_s, view.now), self.worth_s)
            self._kept[view.stage] = (view.now, kept)
        fleet = Fleet(len(view.running), view.starting_in_s, view.slots, self.start_s, 0, self.maximum, kept)
        need = StageNeed(replicas_needed(demands, fleet), self.start_s, view.busy)
        scaler = self._scalers[view.stage]
        scaler.take(need, view.target, view.now)
        return scaler.replicas(view.target, view.running, view.now)


@dataclass(slots=True)
class ServePolicy:
    """Serve's default policy for `target_ongoing_requests`, its bounds and its delays, all from Ray's code.

    Requests are those that wait for the stage or run in it, averaged over the last 30 s as Serve does.
    """

    target_requests: float
    maximum: int
    _requests: Counter[Stage] = field(default_factory=Counter)
    _ray: Any = field(init=False)
    _config: Any = field(init=False)
    _states: dict[Stage, dict[str, Any]] = field(default_factory=lambda: {stage: {} for stage in VIDEO_STAGES})
    _seen: dict[Stage, deque[tuple[float, int]]] = field(
        default_factory=lambda: {stage: deque() for stage in VIDEO_STAGES}
    )

    def __post_init__(self) -> None:
        from ray.serve import autoscaling_policy
        from ray.serve.config import AutoscalingConfig

        self._ray = autoscaling_policy
        self._config = AutoscalingConfig(
            min_replicas=0, max_replicas=self.maximum, target_ongoing_requests=self.target_requests
        )

    def note(self, job: SimulatedJob) -> None:
        pass

    def look(self, jobs: Sequence[SimulatedJob], coming: Iterable[SimulatedJob], now: float) -> None:
        self._requests = Counter(job.stage for job in jobs)

    def replicas(self, view: StageView) -> int:
        seen = self._seen[view.stage]
        seen.append((view.now, self._requests[view.stage]))
        while seen[0][0] < view.now - self._config.look_back_period_s:
            seen.popleft()
        context: Any = SimpleNamespace(
            current_num_replicas=len(view.running),
            target_num_replicas=view.target,
            total_num_requests=sum(count for _, count in seen) / len(seen),
            config=self._config,
            policy_state=self._states[view.stage],
        )
        woken = self._ray._get_cold_start_scale_up_replicas(context)
        if woken is not None:
            return min(self.maximum, int(woken))
        desired, _ = self._ray._core_replica_queue_length_policy(context)
        scaled = self._ray._apply_scaling_factors(desired, context.current_num_replicas, self._config)
        decided, self._states[view.stage] = self._ray._apply_delay_logic(
            max(0, scaled), view.target, self._config, self._states[view.stage], _now=view.now
        )
        return max(0, min(self.maximum, int(decided)))


@dataclass(slots=True)
class AllPolicy:
    """All that there may be, all day: what is late even so is late by the order of jobs or for want of GPUs."""

    maximum: int
    _is_over: bool = False

    def note(self, job: SimulatedJob) -> None:
        pass

    def look(self, jobs: Sequence[SimulatedJob], coming: Iterable[SimulatedJob], now: float) -> None:
        self._is_over = now >= DAY_S and not jobs

    def replicas(self, view: StageView) -> int:
        return 0 if self._is_over else self.maximum
