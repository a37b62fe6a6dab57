"""How many replicas of a stage are wanted, from all the work that is in the pipeline. Pure.

A job has a wait that it may have in all its queues together: the target of its tier. So each stage
has a moment by which a job must begin there. The replicas that are wanted are the fewest with which
all live jobs would begin in time, if nothing else came: their work is dealt to the slots, the most
urgent first, the slots that are busy or still starting from when they are free. A new replica is
there after a start, whose time is measured; what cannot be in time even so is to begin when the new
ones are there. A job that waits for the encoder, or that is being sampled, is work of the stages
behind from when it will come there: replicas are asked for a start before that. For jobs that
cannot wait for a start slots are kept before they come (`headroom.py`); others may hold them until then.

What is late by that begins no later because replicas went, or because starts were given up: they
are needed as long as one of their slots is the first that such a job finds. When what is not needed
goes is decided in `scaler.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import ceil
from operator import attrgetter

from deployments.messages import VIDEO_STAGES, Stage

# Of the target wait that may pass before the encoder: what is behind it needs the rest.
ENCODER_SHARE = 0.1
# Of the wait that is left at a later stage: urgent jobs that come meanwhile take slots of those that were planned with.
PLANNED_SHARE = 0.5
# Replicas are asked for so long before they would be too late: what is decided is done a moment later.
MARGIN_S = 10.0
# Jobs that are dealt one by one; the work of those behind them is summed up.
MAX_DEALT = 1000
# What cannot be in time is to begin when new replicas are there, or so much of their start later: a
# replica for each of many short jobs would cost more than it does for them.
LATE = 1.25


@dataclass(frozen=True, slots=True)
class LiveJob:
    """What is left of a job, from the stage that it runs or waits for."""

    stage: Stage
    is_running: bool
    wait_left_s: float  # that it may still wait; negative if it has waited longer than its target
    cancelled_in_s: float  # its deadline; infinite without one
    seconds: Mapping[Stage, float]  # of a device, left in each stage


@dataclass(frozen=True, slots=True)
class Demand:
    """A job's work for one stage."""

    seconds: float  # of a device
    comes_in_s: float  # it is at the stage by then
    due_in_s: float  # it should have begun by then
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas of a stage.

    Args:
        running: that take jobs.
        starting: seconds until each one that was asked for is there.
        slots: of a replica; jobs in them share its device.
        start_s: from asking for a replica until it takes jobs.
        minimum: that are there always.
        maximum: that may be there.
        kept: slots that are there for urgent jobs that have not come yet (`headroom.py`).
    """

    running: int
    starting: Sequence[float]
    slots: int
    start_s: float
    minimum: int
    maximum: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class StageState:
    """How many replicas of a stage Serve keeps, and may keep: what the policy tells the registry."""

    stage: Stage
    target: int  # replicas that Serve keeps now
    slots: int  # of a replica
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class StageNeed:
    """What the registry answers."""

    replicas: int  # that are needed now
    start_s: float  # from asking for a replica until it takes jobs
    busy: frozenset[str] = frozenset()  # the names of the replicas that hold a job


def demand(job: LiveJob, stage: Stage) -> Demand | None:
    """What the job asks of a stage; None if it is past it."""
    at, of = VIDEO_STAGES.index(job.stage), VIDEO_STAGES.index(stage)
    if of < at:
        return None
    comes_in_s = sum(job.seconds[before] for before in VIDEO_STAGES[at:of])
    left_s = sum(job.seconds[left] for left in VIDEO_STAGES[at:])
    wait_s = min(job.wait_left_s, job.cancelled_in_s - left_s)
    wait_s = wait_s * ENCODER_SHARE if stage is Stage.ENCODING else wait_s * PLANNED_SHARE - MARGIN_S
    return Demand(
        seconds=job.seconds[stage],
        comes_in_s=comes_in_s,
        due_in_s=comes_in_s + max(0.0, wait_s),
        is_running=of == at and job.is_running,
    )


def replicas_needed(demands: Iterable[Demand], fleet: Fleet, activation_s: float = 0.0) -> int:
    """The fewest replicas with which all begins in time, within the bounds of the fleet.

    Args:
        demands: of the live jobs.
        fleet: the replicas that there are.
        activation_s: while there are no replicas, less work than this starts none until it would be
            late otherwise.
    """
    fewest = max(fleet.minimum, min(fleet.maximum, ceil(fleet.kept / fleet.slots)))
    # What comes later than a new replica could is no reason to ask for one now.
    soon = [d for d in demands if d.comes_in_s <= fleet.start_s + MARGIN_S]
    held = [d.seconds * fleet.slots for d in soon if d.is_running]
    waiting = sorted((d for d in soon if not d.is_running), key=attrgetter("due_in_s"))
    if not fleet.running and not fleet.starting and not held and _may_sleep(waiting, fleet.start_s, activation_s):
        return fewest
    fewest = max(fewest, ceil(len(held) / fleet.slots), int(bool(waiting)))
    most = min(fleet.maximum, max(fewest, len(held) + len(waiting)))
    fewest = min(max(fewest, _fluid(waiting, fleet)), most)
    dealt = waiting[:MAX_DEALT]
    limits = [max(d.due_in_s, fleet.start_s * LATE) for d in dealt]
    # Time goes on, and with it what a new replica could be there for: by that measure alone late jobs would be
    # put off again and again.
    there = fleet.running + len(fleet.starting)
    limits_below = limits
    if fewest < there:
        limits_below = [max(d.due_in_s, at) for d, at in zip(dealt, _begins(dealt, held, fleet, there), strict=True)]
    while fewest < most:
        count = (fewest + most) // 2
        wanted = limits_below if count < there else limits
        if all(at <= limit for at, limit in zip(_begins(dealt, held, fleet, count), wanted, strict=True)):
            most = count
        else:
            fewest = count + 1
    return max(fleet.minimum, fewest)


def _may_sleep(waiting: Sequence[Demand], start_s: float, activation_s: float) -> bool:
    is_little = sum(d.seconds for d in waiting) < activation_s
    return is_little and all(d.due_in_s > start_s + MARGIN_S for d in waiting)


def _begins(dealt: Sequence[Demand], held: Sequence[float], fleet: Fleet, count: int) -> Iterator[float]:
    """When each begins with so many replicas, which have a slot for each that is held."""
    ready = [0.0] * fleet.running + sorted(min(s, fleet.start_s) for s in fleet.starting)
    ready = (ready + [fleet.start_s] * (count - len(ready)))[:count]
    free_at = [at for at in ready for _ in range(fleet.slots)]
    free_at[: len(held)] = held
    heapify(free_at)
    for d in dealt:
        begins = max(free_at[0], d.comes_in_s)
        yield begins
        heapreplace(free_at, begins + d.seconds * fleet.slots)


def _fluid(waiting: Sequence[Demand], fleet: Fleet) -> int:
    """What the work behind the first `MAX_DEALT` jobs needs, as if it could be divided at will."""
    if len(waiting) <= MAX_DEALT:
        return 0
    wanted = 0
    there = fleet.running + len(fleet.starting)
    before_s = sum(d.seconds for d in waiting[:MAX_DEALT])
    for d in waiting[MAX_DEALT:]:
        due_in_s = max(d.due_in_s, fleet.start_s)
        if before_s > there * due_in_s:
            more = (before_s - there * due_in_s) / max(due_in_s - fleet.start_s, d.seconds)
            wanted = max(wanted, there + ceil(more))
        before_s += d.seconds
    return wanted
