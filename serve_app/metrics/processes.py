"""What all processes of a cluster have counted in memory, as one. Pure.

A process sends all that it has counted since it began, under a name that it drew then, so a snapshot counts once
however often and in whatever order it comes. One that is not heard any more has its gauges left out soon, and its
counters added to those of the ended ones when it cannot come back.
"""

from collections import deque
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from deployments.metrics.metric import Metric
from deployments.metrics.names import BY_NAME
from deployments.metrics.recorder import Distribution, LabelBounds, Series, Snapshot, Value

SILENT_S = 30.0  # after which what a process said of now is not true any more
ENDED_S = 3600.0  # after which it is gone: one that hangs is killed within minutes
MOST_ENDED = 1000  # names of those that are remembered, should one come back all the same


@dataclass(slots=True)
class _Process:
    snapshot: Snapshot
    heard_at: float  # seconds of a monotonic clock
    saved: int = 0  # the number of the snapshot that is in SQL


@dataclass(slots=True)
class Processes:
    """The newest snapshot of each, and the sum of the ended ones."""

    ended: dict[Series, Value] = field(default_factory=dict)
    _processes: dict[str, _Process] = field(default_factory=dict)
    _gone: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_ENDED))
    _bounds: LabelBounds = field(default_factory=LabelBounds)

    def hear(self, snapshot: Snapshot, now: float) -> None:
        """Take a snapshot of a process that lives, unless a newer one was heard. now: of a monotonic clock."""
        if snapshot.process in self._gone:
            return
        known = self._processes.get(snapshot.process)
        if known is None:
            self._processes[snapshot.process] = _Process(snapshot, now)
        else:
            known.heard_at = now
            if snapshot.number > known.snapshot.number:
                known.snapshot = snapshot

    def restore(self, snapshot: Snapshot, now: float) -> None:
        """Take a snapshot that was kept: its process lives on, or has ended; it says so itself or not."""
        self.hear(snapshot, now)
        known = self._processes.get(snapshot.process)
        if known is not None:
            known.saved = max(known.saved, snapshot.number)

    def unsaved(self) -> list[Snapshot]:
        """What is to be kept, with counters and histograms alone."""
        return [
            Snapshot(one.snapshot.process, one.snapshot.role, one.snapshot.number, _counted(one.snapshot.values))
            for one in self._processes.values()
            if one.snapshot.number > one.saved
        ]

    def mark_saved(self, snapshots: Iterable[Snapshot]) -> None:
        """They are kept now."""
        for snapshot in snapshots:
            known = self._processes.get(snapshot.process)
            if known is not None:
                known.saved = max(known.saved, snapshot.number)

    def end_silent(self, now: float) -> list[str]:
        """Add the counts of those that are gone to `ended`; returns their names."""
        gone = [name for name, one in self._processes.items() if now - one.heard_at > ENDED_S]
        for name in gone:
            add_values(self.ended, _counted(self._processes.pop(name).snapshot.values))
            self._gone.append(name)
        return gone

    def alive(self, now: float) -> int:
        """How many are heard."""
        return sum(now - one.heard_at <= SILENT_S for one in self._processes.values())

    def gauges(self, wanted: Container[str], now: float) -> dict[Series, Value]:
        """Of the gauges with these names alone, what is true now; for a handful of them a small part of `values`."""
        merged: dict[Series, Value] = {}
        for one in self._processes.values():
            if now - one.heard_at <= SILENT_S:
                add_values(merged, {series: v for series, v in one.snapshot.values.items() if series[0] in wanted})
        return merged

    def values(self, now: float) -> dict[Series, Value]:
        """All of it as one."""
        merged: dict[Series, Value] = dict(self.ended)
        for one in self._processes.values():
            is_heard = now - one.heard_at <= SILENT_S
            add_values(merged, one.snapshot.values if is_heard else _counted(one.snapshot.values))
        bounded: dict[Series, Value] = {}
        for (name, labels), value in merged.items():
            metric = BY_NAME[name]
            add_values(bounded, {(name, self._bounds.bounded(metric, labels)): value})
        return bounded


def add_values(to: dict[Series, Value], more: Mapping[Series, Value]) -> None:
    """Merge what one process says into what others say; a series that is no metric here is left out."""
    for series, value in more.items():
        metric = BY_NAME.get(series[0])
        if metric is None:  # of another version
            continue
        before = to.get(series)
        to[series] = value if before is None else _merged(metric, before, value)


def _merged(metric: Metric, a: Value, b: Value) -> Value:
    if isinstance(a, Distribution) and isinstance(b, Distribution):
        # Of two versions with other buckets the first one counts.
        return a + b if len(a.counts) == len(b.counts) else a
    assert isinstance(a, int | float) and isinstance(b, int | float)
    return max(a, b) if metric.kind == "gauge" and metric.merge == "max" else a + b


def _counted(values: Mapping[Series, Value]) -> dict[Series, Value]:
    return {series: v for series, v in values.items() if series[0] in BY_NAME and BY_NAME[series[0]].kind != "gauge"}
