"""Expressions of PromQL made of the metrics themselves, so that no name and no label is ever typed.

Every replica of the ingress answers with the page of the whole cluster, and a Prometheus may scrape several of them.
So each expression first takes the maximum over whatever read the same series, and only then adds up.
"""

import math
from dataclasses import dataclass
from typing import Literal

from deployments.metrics.metric import Metric
from deployments.metrics.names import JOBS_UNACCOUNTED

JOB = "job"
"""The label by which Prometheus tells servers apart: its scrape job."""

Suffix = Literal["", "_bucket", "_sum", "_count"]


@dataclass(frozen=True, slots=True)
class PromQL:
    """How expressions are made.

    Args:
        matchers: that every selector has.
        keep: labels that no aggregation takes away.
        window: of rates, where none is named.
    """

    matchers: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    window: str = "5m"

    def now(self, metric: Metric, *by: str, **where: str) -> str:
        """What a gauge or counter shows, by these labels.

        Args:
            metric: no histogram.
            by: the labels that stay.
            where: the value of a label: `~` before it for an expression, `!` for all others.
        """
        _check(metric, by, where)
        return self._merged(metric, self._selector(metric, "", where), by)

    def rate(self, metric: Metric, *by: str, window: str = "", suffix: Suffix = "", **where: str) -> str:
        """What is added to a counter, or a part of a histogram, a second."""
        _check(metric, by, where)
        return self._merged(metric, f"rate({self._selector(metric, suffix, where)}[{window or self.window}])", by)

    def increase(self, metric: Metric, *by: str, window: str, suffix: Suffix = "", **where: str) -> str:
        """What is added to a counter, or a part of a histogram, in a window."""
        _check(metric, by, where)
        return self._merged(metric, f"increase({self._selector(metric, suffix, where)}[{window}])", by)

    def slope(self, metric: Metric, *by: str, window: str, **where: str) -> str:
        """How much a gauge rises a second, by a line through a window."""
        _check(metric, by, where)
        return self._merged(metric, f"deriv({self._selector(metric, '', where)}[{window}])", by)

    def risen(self, metric: Metric, *by: str, window: str, **where: str) -> str:
        """The same of a counter that comes from the database and so never falls, by a difference: whole numbers, and
        the first event of a series too, which begins with it. A series that was read less often than one that is
        always there began in the window, at 0; one that was read as often counts from what was read first."""
        assert metric.source == "jobs" and metric.kind == "counter"
        _check(metric, by, where)
        own = metric.label_names
        read = self._selector(metric, "", where)
        now = self._aggregated("max", own, read)
        first = self._aggregated("min", own, f"min_over_time({read}[{window}])")
        times = self._aggregated("max", own, f"count_over_time({read}[{window}])")
        most = self._aggregated("max", (), f"count_over_time({self._selector(JOBS_UNACCOUNTED, '', {})}[{window}])")
        on = f"on ({', '.join(self.keep)}) group_left ()"
        rise = f"{now} - {first} * ({times} >= bool {on} {most})"
        return f"({rise})" if set(by) == set(own) else self._aggregated("sum", by, rise)

    def quantile(self, of: float, metric: Metric, *by: str, window: str = "", **where: str) -> str:
        """The value that this part of a histogram's observations stays below."""
        _check(metric, by, where)
        return f"histogram_quantile({of}, {self.rate(metric, 'le', *by, window=window, suffix='_bucket', **where)})"

    def mean(self, metric: Metric, *by: str, window: str = "", **where: str) -> str:
        """Of a histogram's observations."""
        total = self.rate(metric, *by, window=window, suffix="_sum", **where)
        return f"{total} / {self.rate(metric, *by, window=window, suffix='_count', **where)}"

    def below(self, bound: float, metric: Metric, *by: str, window: str, **where: str) -> str:
        """How many observations of a histogram were no larger than the bound, one of its buckets."""
        assert bound in metric.buckets, f"{bound} is no bucket of {metric.name}: {metric.buckets}"
        return self.increase(metric, *by, window=window, suffix="_bucket", le=repr(float(bound)), **where)

    def absent(self, metric: Metric) -> str:
        """1 where nobody tells this metric."""
        return f"absent({self._selector(metric, '', {})})"

    def _selector(self, metric: Metric, suffix: Suffix, where: dict[str, str]) -> str:
        assert bool(suffix) == (metric.kind == "histogram"), f"{metric.name} is a {metric.kind}"
        matchers = ", ".join([*self.matchers, *(matcher(*pair) for pair in where.items())])
        return f"{metric.name}{suffix}{{{matchers}}}" if matchers else f"{metric.name}{suffix}"

    def _merged(self, metric: Metric, read: str, by: tuple[str, ...]) -> str:
        """Of all who read the same series one, and then these labels alone."""
        buckets = ("le",) if "le" in by else ()
        once = self._aggregated("max", (*buckets, *metric.label_names), read)
        if set(by) == {*buckets, *metric.label_names}:
            return once
        return self._aggregated(metric.merge, by, once)

    def _aggregated(self, how: str, by: tuple[str, ...], inner: str) -> str:
        labels = ", ".join((*self.keep, *by))
        return f"{how} by ({labels}) ({inner})" if labels else f"{how}({inner})"


def for_prometheus(expression: str, job: str, interval_s: float) -> str:
    """A dashboard's expression with Grafana's variables filled in, as Grafana does.

    Args:
        expression: of a panel.
        job: the scrape job of the server.
        interval_s: between two scrapes, seconds; the window of rates is four of them.
    """
    return expression.replace("$job", job).replace("$__rate_interval", f"{math.ceil(4 * interval_s)}s")


def matcher(label: str, value: str) -> str:
    """Of a label: `~` before the value for an expression, `!` for all others."""
    for mark, operator in (("!~", "!~"), ("~", "=~"), ("!", "!=")):
        if value.startswith(mark):
            return f'{label}{operator}"{value[len(mark) :]}"'
    return f'{label}="{value}"'


def _check(metric: Metric, by: tuple[str, ...], where: dict[str, str]) -> None:
    known = {*metric.label_names, *(("le",) if metric.kind == "histogram" else ())}
    unknown = {*by, *where} - known
    if unknown:
        allowed = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}; it has {allowed}")
