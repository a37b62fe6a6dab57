"""The same values for Ray's own page of metrics, where they are called `ray_<name>`.

Ray's counters take increments and its histograms single values, so what is told is the difference to what was told
before: of a histogram, each new value as the middle of its bucket. Ray makes a histogram's `_sum` of such middles
anyway; the true one stands beside it as `<name>_true_sum`.
"""

import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import ray
from ray.util import metrics as ray_metrics

from deployments.metrics.metric import Metric
from deployments.metrics.names import BY_NAME
from deployments.metrics.recorder import Distribution, Series, Value, no_observation

MOST_AT_ONCE = 2000  # values of a histogram's bucket that are told in one go; the rest follows with the next

log = logging.getLogger("ray.serve")


class RayPage:
    """Tells Ray what is new. Does nothing where there is no Ray. Not thread-safe."""

    def __init__(self) -> None:
        self._told: dict[Series, Value] = {}
        self._ray_metrics: dict[str, Any] = {}
        self._failed = False

    def tell(self, values: Mapping[Series, Value]) -> None:
        """Bring Ray's page to these values; those of counters and histograms since this object was made."""
        if self._failed or not ray.is_initialized():
            return
        try:
            for (name, labels), value in values.items():
                metric = BY_NAME[name]
                tags = dict(zip(metric.label_names, labels, strict=True))
                if isinstance(value, Distribution):
                    self._tell_distribution(metric, labels, tags, value)
                else:
                    self._tell_number(metric, labels, tags, value)
        except Exception:  # Ray's page is beside ours: it must cost the process nothing
            self._failed = True
            log.exception("metrics: Ray does not take them, so its page goes without; /metrics has them")

    def _tell_number(self, metric: Metric, labels: tuple[str, ...], tags: dict[str, str], value: float) -> None:
        if metric.kind == "gauge":
            self._of(metric, ray_metrics.Gauge).set(value, tags)
            return
        before = self._told.get((metric.name, labels), 0.0)
        assert isinstance(before, int | float)
        if value > before:  # Ray takes no increment of nothing
            self._of(metric, ray_metrics.Counter).inc(value - before, tags)
            self._told[metric.name, labels] = value

    def _tell_distribution(
        self, metric: Metric, labels: tuple[str, ...], tags: dict[str, str], value: Distribution
    ) -> None:
        before = self._told.get((metric.name, labels), no_observation(metric))
        assert isinstance(before, Distribution)
        histogram = self._of(metric, ray_metrics.Histogram)
        told = list(before.counts)
        for bucket, (middle, new) in enumerate(zip(_middles(metric), (value - before).counts, strict=True)):
            for _ in range(min(new, MOST_AT_ONCE)):
                histogram.observe(middle, tags)
                told[bucket] += 1
        if value.total > before.total:
            self._of(metric, ray_metrics.Counter, "_true_sum").inc(value.total - before.total, tags)
        self._told[metric.name, labels] = Distribution(tuple(told), value.total)

    def _of(self, metric: Metric, kind: type[Any], suffix: str = "") -> Any:
        name = f"{metric.name}{suffix}"
        if name not in self._ray_metrics:
            more = {"boundaries": list(metric.buckets)} if kind is ray_metrics.Histogram else {}
            self._ray_metrics[name] = kind(name, description=metric.help, tag_keys=metric.label_names, **more)
        return self._ray_metrics[name]


def _middles(metric: Metric) -> list[float]:
    """A value in each bucket."""
    bounds = (0.0, *metric.buckets)
    return [*((low + high) / 2 for low, high in pairwise(bounds)), 2 * bounds[-1]]
