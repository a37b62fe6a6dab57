"""When each waiting job will start and finish: list scheduling over the slots of its stage. Pure.

List scheduling (R. L. Graham, "Bounds for certain multiprocessing anomalies", 1966): in the order of the queue each job
takes the slot that is free first. That is what the registry does, so the forecast is exact if the times are, and if
nothing else comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace


@dataclass(frozen=True, slots=True)
class Ahead:
    """A waiting job. wall_s: seconds that it will hold a slot. tail_s: seconds from there to its end (later stages)."""

    job_id: str
    wall_s: float
    tail_s: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds from now until a job gets a slot of its stage, and until the whole job is done."""

    starts_in_s: float
    finishes_in_s: float


def forecast(waiting: Sequence[Ahead], running: Sequence[float], slots: int) -> dict[str, Forecast]:
    """What to expect for each waiting job, by id.

    Args:
        waiting: in the order in which they will be served.
        running: seconds left of each held slot; one that is overdue (below 0) is taken to end now.
        slots: open and held ones together. Without any nothing can be forecast and the result is empty.
    """
    free_in_s = _free_in_s(running, slots)
    expected = {}
    for job in waiting if free_in_s else ():
        start = free_in_s[0]
        end = start + job.wall_s
        heapreplace(free_in_s, end)
        expected[job.job_id] = Forecast(start, end + job.tail_s)
    return expected


def _free_in_s(running: Sequence[float], slots: int) -> list[float]:
    """Heap of the seconds until each slot is free. Where more are held than there are, the first to end are gone."""
    if slots <= 0:
        return []
    held = sorted(max(0.0, left) for left in running)[-slots:]
    free = [0.0] * (slots - len(held)) + held
    heapify(free)
    return free
