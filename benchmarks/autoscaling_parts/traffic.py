"""The jobs of a day, drawn from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from deployments.messages import Stage
from serve_app.jobs import Tier

DAY_S = 86_400.0
HOURS = (2, 1, 1, 1, 1, 2, 4, 7, 10, 12, 12, 11, 10, 11, 12, 12, 11, 10, 8, 7, 6, 5, 4, 3)
"""The mean load of each hour, in parts of the busiest hour's 12."""
BUSY = 0.6  # of the GPUs, in the mean of the busiest hour; bursts come on top
BURSTS = 8
BURST_JOBS = 1.0  # a burst has as many jobs as there may be GPUs
TIERS = {Tier.INTERACTIVE: 0.25, Tier.STANDARD: 0.5, Tier.BATCH: 0.25}
# Measured on one H100 (docs/performance.md): a video of 163 frames as draft, fast and exact.
SAMPLING_S = {42.0: 0.4, 176.0: 0.3, 373.0: 0.3}
ENCODING_S = 0.1
DECODING_S = 2.2
GPUS = {Stage.ENCODING: 0.5, Stage.SAMPLING: 1.0, Stage.DECODING: 0.5}
"""Of a replica, as in configs/kuberay.yaml."""


@dataclass(slots=True, eq=False)
class SimulatedJob:
    """A job and where it is."""

    created_at: float
    tier: Tier
    seconds: dict[Stage, float]  # in each stage; left of it when it began to run or to wait
    stage: Stage = Stage.ENCODING
    is_running: bool = False
    waits_since: float = 0.0
    waited_s: float = 0.0  # in all queues together
    runs_since: float = 0.0
    parks: int = 0

    def waited_until(self, now: float) -> float:
        return self.waited_s if self.is_running else self.waited_s + now - self.waits_since

    def left_at(self, now: float) -> dict[Stage, float]:
        """Seconds left in each stage."""
        if not self.is_running:
            return self.seconds
        return {**self.seconds, self.stage: max(0.0, self.seconds[self.stage] - (now - self.runs_since))}


@dataclass(frozen=True, slots=True)
class Traffic:
    """The jobs of a day by their arrival."""

    jobs: Sequence[SimulatedJob] = field(repr=False)
    bursts_at: Sequence[float]


def draw_day(gpus: int, seed: int) -> Traffic:
    """A day that keeps up to `gpus` GPUs busy: an hourly rhythm, Poisson within it, and bursts."""
    draw = random.Random(seed)
    mean_s = sum(s * part for s, part in SAMPLING_S.items()) + DECODING_S
    peak_rate = BUSY * gpus / mean_s
    arrivals: list[float] = []
    at = 0.0
    while (at := at + draw.expovariate(peak_rate)) < DAY_S:
        if draw.random() < HOURS[int(at // 3600)] / max(HOURS):
            arrivals.append(at)
    bursts_at = sorted(draw.uniform(0, DAY_S - 7200) for _ in range(BURSTS))
    for burst_at in bursts_at:
        arrivals += [burst_at + draw.uniform(0, 30) for _ in range(max(1, round(BURST_JOBS * gpus)))]
    return Traffic([_draw_job(draw, at) for at in sorted(arrivals)], bursts_at)


def _draw_job(draw: random.Random, at: float) -> SimulatedJob:
    (tier,) = draw.choices(list(TIERS), list(TIERS.values()))
    (sampling_s,) = draw.choices(list(SAMPLING_S), list(SAMPLING_S.values()))
    seconds = {Stage.ENCODING: ENCODING_S, Stage.SAMPLING: sampling_s, Stage.DECODING: DECODING_S}
    return SimulatedJob(at, tier, seconds, waits_since=at)
