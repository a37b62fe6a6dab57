"""What a process counts of itself: a lock and a dictionary, no I/O, so it may stand on the path of a step or a request.

    RECORDER.count(names.CHECKPOINTS)
    RECORDER.observe(names.STEP_SECONDS, 0.31, "848x480x61", "exact")

A process has one `RECORDER`, as it has one log: what counts is spread over all its parts, and what it tells is one
snapshot under one name. So a snapshot that arrives twice, or several parts that each send it, count once.
"""

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from deployments.metrics.metric import OTHER, Metric

Series = tuple[str, tuple[str, ...]]
"""The name of a metric and the values of its labels."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram has observed."""

    counts: tuple[int, ...]  # of each bucket alone, the one to infinity last
    total: float  # of all values

    def __add__(self, other: "Distribution") -> "Distribution":
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Distribution(counts, self.total + other.total)

    def __sub__(self, other: "Distribution") -> "Distribution":
        counts = tuple(a - b for a, b in zip(self.counts, other.counts, strict=True))
        return Distribution(counts, self.total - other.total)


Value = float | Distribution


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a process has counted since it began."""

    process: str  # its own name, drawn when it began: another life is another process
    role: str  # for people
    number: int  # grows from one snapshot to the next
    values: dict[Series, Value]


def no_observation(metric: Metric) -> Distribution:
    """Of a histogram that has observed nothing."""
    return Distribution((0,) * (len(metric.buckets) + 1), 0.0)


class LabelBounds:
    """Which values of labels are told apart: the first ones, as many as the label may have. Not thread-safe."""

    def __init__(self) -> None:
        self._known: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def bounded(self, metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels, with OTHER in the place of a value beyond the bound.

        Raises:
            ValueError: they are not as many as the metric has.
        """
        return tuple(
            value
            if value in label.values
            or (label.most is not None and self._has_room(metric, label.name, value, label.most))
            else OTHER
            for label, value in zip(metric.labels, labels, strict=True)
        )

    def _has_room(self, metric: Metric, label: str, value: str, most: int) -> bool:
        known = self._known[metric.name, label]
        if value not in known and len(known) < most:
            known.add(value)
        return value in known


class Number:
    """A series of a counter or a gauge. Thread-safe; who counts often keeps it, and is spared the search for it."""

    __slots__ = ("_lock", "value")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.value: float = 0

    def add(self, by: float = 1) -> None:
        """Count; `by` is never negative for a counter."""
        with self._lock:
            self.value += by

    def set(self, value: float) -> None:
        """Of a gauge."""
        with self._lock:
            self.value = value


class Observations:
    """A series of a histogram. Thread-safe; who observes often keeps it."""

    __slots__ = ("_buckets", "_lock", "counts", "total")

    def __init__(self, lock: threading.Lock, buckets: tuple[float, ...]) -> None:
        self._lock = lock
        self._buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add a value."""
        with self._lock:
            self.counts[bisect_left(self._buckets, value)] += 1
            self.total += value


class Recorder:
    """Counters, gauges and histograms of one process. Thread-safe."""

    def __init__(self) -> None:
        self.process = uuid4().hex
        self._lock = threading.Lock()
        # By their bounded labels. What was folded is bounded anew each time: clients may make up any number of it.
        self._numbers: dict[Series, Number] = {}
        self._observations: dict[Series, Observations] = {}
        self._bounds = LabelBounds()
        self._snapshots = 0

    def __reduce__(self) -> tuple[Callable[[], "Recorder"], tuple[()]]:
        """Serve sends the classes of deployments by value, with what they name: in a replica that is its own one."""
        return of_this_process, ()

    def number(self, metric: Metric, *labels: str) -> Number:
        """The series of a counter or a gauge, of 0 if it is new. Raises ValueError as `LabelBounds.bounded` does."""
        found = self._numbers.get((metric.name, labels))
        if found is None:
            with self._lock:
                series = metric.name, self._bounds.bounded(metric, labels)
                found = self._numbers.setdefault(series, Number(self._lock))
        return found

    def observations(self, metric: Metric, *labels: str) -> Observations:
        """The series of a histogram, without a value if it is new. Raises ValueError as `LabelBounds.bounded` does."""
        found = self._observations.get((metric.name, labels))
        if found is None:
            with self._lock:
                series = metric.name, self._bounds.bounded(metric, labels)
                found = self._observations.setdefault(series, Observations(self._lock, metric.buckets))
        return found

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add to a counter; `by` is never negative."""
        self.number(metric, *labels).add(by)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        self.number(metric, *labels).set(value)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        self.observations(metric, *labels).observe(value)

    @contextmanager
    def timing(self, metric: Metric, *labels: str) -> Iterator[None]:
        """Observe how long the block took, in seconds, also when it raises."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.observe(metric, time.perf_counter() - begun, *labels)

    def snapshot(self, role: str) -> Snapshot:
        """All of it now."""
        with self._lock:
            self._snapshots += 1
            values: dict[Series, Value] = {series: number.value for series, number in self._numbers.items()}
            for series, seen in self._observations.items():
                values[series] = Distribution(tuple(seen.counts), seen.total)
            return Snapshot(self.process, role, self._snapshots, values)


def of_this_process() -> Recorder:
    """`RECORDER`."""
    return RECORDER


RECORDER = Recorder()
"""Of this process."""

PUSH_EVERY_S = 5.0
"""Between two times that a process tells the registry what it counted."""
