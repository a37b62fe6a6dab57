"""The jobs of a day, drawn from a seed, and what no schedule can do them with less than."""

import math
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
    seconds: dict[Stage, float]  # left in each stage
    stage: Stage = Stage.ENCODING
    is_running: bool = False
    waits_since: float = 0.0
    waited_s: float = 0.0  # in all queues together
    parks: int = 0

    def waited_until(self, now: float) -> float:
        return self.waited_s if self.is_running else self.waited_s + now - self.waits_since


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


def least_gpu_s(traffic: Traffic, targets_s: dict[Tier, float], start_s: float) -> float:
    """What no schedule goes below that knows the day beforehand and keeps every job within its target.

    All work, without a second of idleness, and one start of each sampler that is needed at the same
    time at the worst moment: the work that comes in a span and must be done in it, divided by the
    span. More starts, and idleness between them, are left out: the best schedule costs more.
    """
    work_s = sum(s * GPUS[stage] for job in traffic.jobs for stage, s in job.seconds.items())
    return work_s + start_s * most_at_once(traffic, targets_s)


def most_at_once(traffic: Traffic, targets_s: dict[Tier, float], step_s: float = 300.0) -> int:
    """Samplers that are needed at the same time, over spans that begin and end at multiples of step_s."""
    bins = int(DAY_S // step_s) + 40
    # Work by the bin of its arrival (rounded up, so that it lies in the span) and of its latest end.
    work: dict[tuple[int, int], float] = {}
    for job in traffic.jobs:
        sampling_s = job.seconds[Stage.SAMPLING]
        begin = math.floor(job.created_at / step_s)
        end = math.ceil((job.created_at + targets_s[job.tier] + sampling_s) / step_s)
        work[begin, end] = work.get((begin, end), 0.0) + sampling_s
    ends_of: dict[int, list[tuple[int, float]]] = {}
    for (begin, end), seconds in work.items():
        ends_of.setdefault(begin, []).append((end, seconds))
    most, by_end = 0.0, [0.0] * (bins + 1)
    for begin in range(bins, -1, -1):
        for end, seconds in ends_of.get(begin, ()):
            by_end[min(end, bins)] += seconds
        total = 0.0
        for end in range(begin + 1, min(bins, begin + 40) + 1):
            total += by_end[end]
            most = max(most, total / ((end - begin) * step_s))
    return math.ceil(most)
