"""The page that Prometheus reads: text format 0.0.4, or OpenMetrics where it is asked for."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from deployments.metrics.metric import Metric
from deployments.metrics.names import ALL
from deployments.metrics.recorder import Distribution, Series, Value, no_observation


def render_page(values: Mapping[Series, Value], accept: str) -> tuple[bytes, str]:
    """The page, and its content type.

    Args:
        values: by series; those that are known from the start and are missing are 0.
        accept: the request's header Accept, which chooses the format.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Values(values))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Values(Collector):
    def __init__(self, values: Mapping[Series, Value]) -> None:
        self._by_name: dict[str, dict[tuple[str, ...], Value]] = {}
        for (name, labels), value in values.items():
            self._by_name.setdefault(name, {})[labels] = value

    def collect(self) -> Iterator[Family]:
        for metric in ALL:
            yield family(metric, self._by_name.get(metric.name, {}))


def family(metric: Metric, values: Mapping[tuple[str, ...], Value]) -> Family:
    """One metric with all its series, those that nothing happened to yet among them."""
    nothing: Value = no_observation(metric) if metric.kind == "histogram" else 0.0
    series = dict.fromkeys(metric.first_series(), nothing) | dict(values)
    names = metric.label_names
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
        bounds = [*(repr(float(bound)) for bound in metric.buckets), "+Inf"]
        for labels, value in sorted(series.items()):
            assert isinstance(value, Distribution)
            counts = accumulate(value.counts)
            histogram.add_metric(labels, list(zip(bounds, counts, strict=True)), value.total)
        return histogram
    numbers = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    plain = numbers(metric.name, metric.help, labels=names)
    for labels, value in sorted(series.items(), key=lambda item: item[0]):
        assert isinstance(value, int | float)
        plain.add_metric(labels, value)
    return plain
