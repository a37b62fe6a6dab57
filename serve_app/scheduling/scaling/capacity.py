"""How many replicas of a stage are wanted, from all the work that is in the pipeline. Pure.

A job has a wait that it may have in all its queues together: the target of its tier. So each stage
has a moment by which a job must begin there. The replicas that are wanted are the fewest with which
all live jobs would begin in time, if nothing else came: their work is dealt to the slots, the most
urgent first, the slots that are busy or still starting from when they are free. A new replica is
there after a start, whose time is measured; what cannot be in time even so is to begin when the new
ones are there. A job that waits for the encoder, or that is being sampled, is work of the stages
behind from when it will come there: replicas are asked for a start before that. For jobs that
cannot wait for a start slots are kept before they come (`headroom.py`); others may hold them until then.

More are wanted at once. Fewer are wanted when they were not needed for a while (`Hold`), and while
the replicas that would go have nothing to move (`Scaler`).
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from itertools import islice
from math import ceil, inf
from operator import attrgetter

from deployments.messages import Stage

# Of the target wait that may pass before the encoder: what is behind it needs the rest.
ENCODER_SHARE = 0.1
# Of the wait that is left at a later stage: urgent jobs that come meanwhile take slots of those that were planned with.
PLANNED_SHARE = 0.5
# Replicas are asked for so long before they would be too late: what is decided is done a moment later.
MARGIN_S = 10.0
# Jobs that are dealt one by one; the work of those behind them is summed up.
MAX_DEALT = 1000
# A job that is moved loses no step and a few seconds, so a busy replica is spared for a while and not for ever.
BUSY_PATIENCE_S = 60.0
# What cannot be in time is to begin when new replicas are there, or so much of their start later: a
# replica for each of many short jobs would cost more than it does for them.
LATE = 1.25
# So long without an answer, and the time does not count as time without need.
SILENCE_S = 10.0
_STAGES = tuple(Stage)


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
    at, of = _STAGES.index(job.stage), _STAGES.index(stage)
    if of < at:
        return None
    comes_in_s = sum(job.seconds[before] for before in _STAGES[at:of])
    left_s = sum(job.seconds[left] for left in _STAGES[at:])
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
    while fewest < most:
        count = (fewest + most) // 2
        if _all_begin_in_time(waiting, held, fleet, count):
            most = count
        else:
            fewest = count + 1
    return max(fleet.minimum, fewest)


def _may_sleep(waiting: Sequence[Demand], start_s: float, activation_s: float) -> bool:
    is_little = sum(d.seconds for d in waiting) < activation_s
    return is_little and all(d.due_in_s > start_s + MARGIN_S for d in waiting)


def _all_begin_in_time(waiting: Sequence[Demand], held: Sequence[float], fleet: Fleet, count: int) -> bool:
    slots = count * fleet.slots
    if len(held) > slots:
        return False
    ready = [0.0] * fleet.running + sorted(min(s, fleet.start_s) for s in fleet.starting)
    ready = (ready + [fleet.start_s] * (count - len(ready)))[:count]
    free_at = [at for at in ready for _ in range(fleet.slots)]
    free_at[: len(held)] = held
    heapify(free_at)
    for d in islice(waiting, MAX_DEALT):
        begins = max(free_at[0], d.comes_in_s)
        if begins > max(d.due_in_s, fleet.start_s * LATE):
            return False
        heapreplace(free_at, begins + d.seconds * fleet.slots)
    return True


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


@dataclass(slots=True)
class Hold:
    """The most that was needed within a while: replicas stay that long without need.

    Time in which nobody knows what is needed does not count.
    """

    _needs: deque[tuple[float, int]] = field(default_factory=deque)  # falling, each with when it was needed last
    _seen_at: float = -inf

    def most(self, needed: int, now: float, for_s: float) -> int:
        """The most that was needed within the last for_s seconds, this time included.

        Args:
            needed: now.
            now: on a monotonic clock.
        """
        self._seen_at = now
        while self._needs and self._needs[-1][1] <= needed:
            self._needs.pop()
        self._needs.append((now, needed))
        while self._needs[0][0] < now - for_s:
            self._needs.popleft()
        return self._needs[0][1]

    def skip(self, now: float) -> None:
        """Nothing was known since the last call: what was needed then counts as needed until now."""
        gone_s = now - self._seen_at
        self._needs = deque((at + gone_s, needed) for at, needed in self._needs)
        self._seen_at = now


class Scaler:
    """The number of replicas of one stage, from one answer of the registry to the next.

    Args:
        downscale_delay_s: replicas stay so long without need; None: as long as a start takes.
        busy_patience_s: fewer replicas are asked for after so long though those that go have work to move.
    """

    def __init__(self, downscale_delay_s: float | None, busy_patience_s: float = BUSY_PATIENCE_S) -> None:
        self._delay_s = downscale_delay_s
        self._patience_s = busy_patience_s
        self._hold = Hold()
        self._need: StageNeed | None = None
        self._taken_at = 0.0
        self._wanted = 0
        self._fewer: tuple[int, float] | None = None  # of which target fewer were wanted, and since when

    def take(self, need: StageNeed, target: int, now: float) -> None:
        """Take an answer over. Time without answers does not count: what was needed last is needed until now.

        Args:
            target: replicas that Serve keeps now; at the first answer they count as needed until then.
            now: on a monotonic clock.
        """
        delay_s = need.start_s if self._delay_s is None else self._delay_s
        if self._need is None:
            self._hold.most(target, now, delay_s)
        elif now - self._taken_at > SILENCE_S:
            self._hold.skip(now)
        self._need, self._taken_at = need, now
        self._wanted = self._hold.most(need.replicas, now, delay_s)

    def replicas(self, target: int, running: Sequence[str], now: float) -> int:
        """How many Serve should keep; as many as now while nothing is known.

        Args:
            target: replicas that it keeps now.
            running: the names of those that run, the oldest first.
            now: on a monotonic clock.
        """
        if self._need is None:
            return target
        if self._wanted >= target:
            self._fewer = None
            return self._wanted
        if self._fewer is None or self._fewer[0] != target:
            self._fewer = (target, now)
        if now - self._fewer[1] >= self._patience_s:
            return self._wanted
        return _kept(target, self._wanted, running, self._need.busy)


def _kept(target: int, wanted: int, running: Sequence[str], busy: Collection[str]) -> int:
    """How many replicas stay, so that none that has something to move would go.

    Serve is told only a number. It stops what has not started first, then the newest on a node. Which
    of equally full nodes it takes first a policy cannot know: this is right where it goes by age.
    """
    stays = len(running)
    while stays > wanted and running[stays - 1] not in busy:
        stays -= 1
    return min(target, max(wanted, stays))
