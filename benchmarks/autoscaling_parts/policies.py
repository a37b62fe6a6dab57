"""What decides how many replicas there are: ours, as it is served, and Serve's default, by Ray's own code."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

from benchmarks.autoscaling_parts.traffic import SimulatedJob
from deployments.messages import Stage
from serve_app.jobs import Tier
from serve_app.scheduling.capacity import Fleet, LiveJob, Scaler, StageNeed, demand, replicas_needed


@dataclass(frozen=True, slots=True)
class StageView:
    """What a policy sees of a stage at a moment."""

    stage: Stage
    now: float
    jobs: Sequence[SimulatedJob]  # all live ones, of every stage
    running: Sequence[str]  # names, the oldest first
    busy: frozenset[str]
    starting_in_s: Sequence[float]
    target: int
    slots: int


class Policy(Protocol):
    """Of all stages."""

    def replicas(self, view: StageView) -> int: ...


@dataclass(slots=True)
class OurPolicy:
    """`capacity.replicas_needed` and `Scaler`, as the registry and Serve's controller call them."""

    targets_s: dict[Tier, float]
    start_s: float
    maximum: int
    _scalers: dict[Stage, Scaler] = field(default_factory=lambda: {stage: Scaler(None) for stage in Stage})

    def replicas(self, view: StageView) -> int:
        """Of a stage."""
        demands = [d for job in view.jobs if (d := demand(self._live(job, view.now), view.stage)) is not None]
        fleet = Fleet(len(view.running), view.starting_in_s, view.slots, self.start_s, 0, self.maximum)
        need = StageNeed(replicas_needed(demands, fleet), self.start_s, view.busy)
        scaler = self._scalers[view.stage]
        scaler.take(need, view.target, view.now)
        return scaler.replicas(view.target, view.running, view.now)

    def _live(self, job: SimulatedJob, now: float) -> LiveJob:
        wait_left_s = self.targets_s[job.tier] - job.waited_until(now)
        return LiveJob(job.stage, job.is_running, wait_left_s, float("inf"), job.seconds)


@dataclass(slots=True)
class ServePolicy:
    """Serve's default policy for `target_ongoing_requests`, its bounds and its delays, all from Ray's code.

    Requests are those that wait for the stage or run in it, averaged over the last 30 s as Serve does.
    """

    target_requests: float
    maximum: int
    _ray: Any = field(init=False)
    _config: Any = field(init=False)
    _states: dict[Stage, dict[str, Any]] = field(default_factory=lambda: {stage: {} for stage in Stage})
    _seen: dict[Stage, deque[tuple[float, int]]] = field(default_factory=lambda: {stage: deque() for stage in Stage})

    def __post_init__(self) -> None:
        from ray.serve import autoscaling_policy
        from ray.serve.config import AutoscalingConfig

        self._ray = autoscaling_policy
        self._config = AutoscalingConfig(
            min_replicas=0, max_replicas=self.maximum, target_ongoing_requests=self.target_requests
        )

    def replicas(self, view: StageView) -> int:
        """Of a stage."""
        seen = self._seen[view.stage]
        seen.append((view.now, sum(job.stage is view.stage for job in view.jobs)))
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
