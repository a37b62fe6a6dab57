"""What a day costs at least, whoever knows it beforehand and keeps every job within its target.

Each stage is bounded for itself, as if a job might spend all that it may wait before it: the best
schedule of all three costs more. Encoder and decoder: one that is there at some moment of each job's
window, as if it had room for all of them (`least_to_meet`). Samplers: their work, and the starts and
idleness that no schedule is spared (`least_sampler_s`):

A span in which more work comes and must be done than n - 1 samplers can do needs n at some moment.
Take spans with gaps between them. For a span that needs n samplers after a gap of g seconds, let m
be the fewest that there are in the gap. They are there throughout it, and do no more than the work
W that can be done in it at all, so m g - W seconds of them are idle; and n - m are started after
that moment, before the span ends. So work, starts and idleness are at least

    work + n1 start + the sum over the later spans of
    the least, over m from 0 to n, of (n - m) start + max(0, m g - W)

with nothing counted twice, since gaps do not overlap and each start lies after its gap's moment and
before the next gap. The spans that make the most of it are found by dynamic programming.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.autoscaling_parts.traffic import DAY_S, GPUS, SimulatedJob, Traffic
from deployments.messages import VIDEO_STAGES, Stage
from serve_app.jobs import Tier

STAGES = VIDEO_STAGES
STEP_S = 120.0  # spans and gaps begin and end at its multiples
LONGEST_SPAN_S = 7200.0
LONGEST_GAP_S = 7200.0  # to count less of a longer one is less, and so still a bound


def least_gpu_s(traffic: Traffic, targets_s: dict[Tier, float], start_s: float) -> dict[Stage, float]:
    """GPU-seconds by stage that no schedule goes below that keeps every job within its target."""
    least = {Stage.SAMPLING: least_sampler_s(traffic, targets_s, start_s)}
    for stage in (Stage.ENCODING, Stage.DECODING):
        windows = []
        for job in traffic.jobs:
            comes_at = job.created_at + sum(job.seconds[before] for before in STAGES[: STAGES.index(stage)])
            windows.append((comes_at, comes_at + targets_s[job.tier]))
        work_s = sum(job.seconds[stage] for job in traffic.jobs)
        least[stage] = max(work_s, least_to_meet(windows, start_s))
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


def least_sampler_s(traffic: Traffic, targets_s: dict[Tier, float], start_s: float, step_s: float = STEP_S) -> float:
    """Seconds of samplers, starts included, that keep every job within its target: no schedule has fewer."""
    jobs = traffic.jobs
    if not jobs:
        return 0.0
    work_s = np.array([job.seconds[Stage.SAMPLING] for job in jobs])
    comes_at, ends_at = _windows(jobs, targets_s)
    bins = int(np.ceil(max(DAY_S, ends_at.max()) / step_s)) + 1
    needed = _needed(comes_at, ends_at, work_s, bins, step_s)
    possible = _possible(comes_at, ends_at, work_s, bins, step_s)
    return float(work_s.sum() + _most(needed, possible, start_s, step_s))


def _windows(jobs: Sequence[SimulatedJob], targets_s: dict[Tier, float]) -> tuple[np.ndarray, np.ndarray]:
    """When each job comes to the samplers, and when it must have left them."""
    comes_at = np.array([job.created_at + job.seconds[Stage.ENCODING] for job in jobs])
    waits_s = np.array([targets_s[job.tier] + job.seconds[Stage.SAMPLING] for job in jobs])
    return comes_at, comes_at + waits_s


def _needed(comes_at: np.ndarray, ends_at: np.ndarray, work_s: np.ndarray, bins: int, step_s: float) -> np.ndarray:
    """Samplers needed at some moment of the span from bin b on that is s + 1 bins long, at [b, s]."""
    first = np.floor(comes_at / step_s).astype(int)
    last = np.ceil(ends_at / step_s).astype(int)  # the bin's end that it lies before
    longest = int(LONGEST_SPAN_S / step_s)
    inside = np.zeros((bins, longest + 1))  # of the jobs that come in a bin, by how long until they must be done
    fits = last - first <= longest
    np.add.at(inside, (np.minimum(first, bins - 1)[fits], (last - first)[fits]), work_s[fits])
    done_by = np.cumsum(inside, axis=1)
    within = np.zeros((bins, longest))
    for span in range(1, longest + 1):
        for skipped in range(span):  # jobs that come `skipped` bins after the span's begin
            within[: bins - skipped, span - 1] += done_by[skipped:, span - skipped]
    lengths_s = step_s * np.arange(1, longest + 1)
    needed: np.ndarray = np.ceil(within / lengths_s - 1e-9).astype(int)
    return needed


def _possible(comes_at: np.ndarray, ends_at: np.ndarray, work_s: np.ndarray, bins: int, step_s: float) -> np.ndarray:
    """Seconds of work that can be done in the gap from bin b on that is g bins long, at [b, g]: no job's twice."""
    longest = int(LONGEST_GAP_S / step_s)
    possible = np.zeros((bins, longest + 1))
    order = np.argsort(comes_at)
    comes_at, ends_at, work_s = comes_at[order], ends_at[order], work_s[order]
    reach_s = (ends_at - comes_at).max()
    for begin in range(bins):
        begin_s = begin * step_s
        some = slice(*np.searchsorted(comes_at, [begin_s - reach_s, begin_s + LONGEST_GAP_S]))
        from_s = np.maximum(comes_at[some], begin_s)[:, None]
        until_s = np.minimum(ends_at[some][:, None], begin_s + step_s * np.arange(longest + 1))
        possible[begin] = np.clip(until_s - from_s, 0.0, work_s[some][:, None]).sum(axis=0)
    return possible


def _most(needed: np.ndarray, possible: np.ndarray, start_s: float, step_s: float) -> float:
    """Of starts and idleness, by the spans that make most of it."""
    bins, longest = needed.shape
    most = np.zeros(bins + longest + 1)  # by spans that have ended by each bin
    for begin in range(bins):
        if begin:
            most[begin] = max(most[begin], most[begin - 1])
        gaps = np.arange(1, min(begin, possible.shape[1] - 1) + 1)
        gap_s, work_s = gaps * step_s, possible[begin - gaps, gaps]
        for count in range(1, needed[begin].max(initial=0) + 1):
            costs = most[begin - gaps] + _after_gap(count, gap_s, work_s, start_s)
            best = max(costs.max(initial=0.0), count * start_s)
            ends = begin + 1 + np.flatnonzero(needed[begin] >= count)[0]
            most[ends] = max(most[ends], best)
    return float(most.max())


def _after_gap(count: int, gap_s: np.ndarray, work_s: np.ndarray, start_s: float) -> np.ndarray:
    """The least over m in the text above: convex in m, so beside where the gap's work fills it, or at an end."""
    fills = np.minimum(count, np.floor(work_s / gap_s))
    candidates = [np.full_like(gap_s, count), fills, np.minimum(count, fills + 1)]
    costs = [(count - m) * start_s + np.maximum(0.0, m * gap_s - work_s) for m in candidates]
    least: np.ndarray = np.minimum.reduce(costs)
    return least
