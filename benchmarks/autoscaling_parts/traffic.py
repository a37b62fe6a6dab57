"""The jobs of a day, drawn from a seed, and what no schedule can do them with less than."""

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from deployments.messages import Stage
from serve_app.jobs import Tier

DAY_S = 86_400.0
STAGES = tuple(Stage)
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


def least_gpu_s(traffic: Traffic, targets_s: dict[Tier, float], start_s: float) -> dict[Stage, float]:
    """What no schedule goes below that knows the day beforehand and keeps every job within its target.

    Samplers: all work, without a second of idleness, and one start of each that is needed at the same
    time at the worst moment: the work that comes in a span and must be done in it, divided by the
    span. More starts, and idleness between them, are left out: the best schedule costs more.
    Encoder and decoder: no less than one that is there whenever a job must begin in it (`least_to_meet`),
    as if it had room for all of them; a job may spend all that it may wait before either.
    """
    work_s = {stage: sum(job.seconds[stage] for job in traffic.jobs) for stage in Stage}
    least = {Stage.SAMPLING: work_s[Stage.SAMPLING] + start_s * most_at_once(traffic, targets_s)}
    for stage in (Stage.ENCODING, Stage.DECODING):
        windows = []
        for job in traffic.jobs:
            comes_at = job.created_at + sum(job.seconds[before] for before in STAGES[: STAGES.index(stage)])
            windows.append((comes_at, comes_at + targets_s[job.tier]))
        least[stage] = max(work_s[stage], least_to_meet(windows, start_s))
    return {stage: GPUS[stage] * seconds for stage, seconds in least.items()}


def least_to_meet(windows: Iterable[tuple[float, float]], start_s: float) -> float:
    """The fewest seconds, starts included, of one replica that is there at some moment of every window.

    It is there at moments p1 < p2 < ...; between two of them it stays or is started again, whichever
    is less. That sum is concave in each moment between its neighbours and the ends of windows, so
    the best moments are ends of windows, and the best sum up to each follows from those before it.
    """
    tight: list[tuple[float, float]] = []  # windows that no other lies in; their ends rise together
    for begin, end in sorted(windows, key=lambda window: (window[1], -window[0])):
        if not tight or begin > tight[-1][0]:
            tight.append((begin, end))
    if not tight:
        return 0.0
    begins, ends = [begin for begin, _ in tight], [end for _, end in tight]
    points = sorted({*begins, *ends})
    least: list[float] = []
    for at in points:
        over = bisect_left(ends, at)  # windows that have ended before
        if not over:
            least.append(start_s)
            continue
        first = bisect_left(points, begins[over - 1])
        here = bisect_left(points, at)
        least.append(min((least[k] + min(at - points[k], start_s) for k in range(first, here)), default=math.inf))
    return min(cost for at, cost in zip(points, least, strict=True) if at >= begins[-1])


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
