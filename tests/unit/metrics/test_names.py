"""The names of the metrics keep Prometheus' conventions and agree with what they name."""

import re
from itertools import pairwise

import pytest

from deployments.messages import Stage
from deployments.metrics import names
from deployments.metrics.metric import Metric
from deployments.metrics.names import ALL
from deployments.step_rules import QUALITIES
from serve_app.jobs import FINAL, RUNNING, TIERS, JobState
from tests.support.metrics.table import DOCS, with_table

UNITS = {"seconds", "bytes", "ratio", "watts", "celsius"}


def test_the_words_of_labels_are_those_of_the_code() -> None:
    assert tuple(stage.value for stage in Stage) == names.STAGES
    assert set(names.LIVE_STATES) == {JobState.QUEUED, *RUNNING}
    assert set(names.END_STATES) == FINAL
    assert tuple(tier.value for tier in TIERS) == names.TIERS
    assert names.QUALITIES == QUALITIES


def test_no_name_stands_twice() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_asks(metric: Metric) -> None:
    assert re.fullmatch(r"mochi_serve_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    base = metric.name.removesuffix("_total")
    if metric.unit in UNITS:
        assert base.endswith(f"_{metric.unit}")
    else:
        assert not base.endswith(tuple(f"_{unit}" for unit in UNITS - {metric.unit.split()[-1].lower()}))
    assert not base.endswith(("_count", "_sum", "_bucket"))
    assert metric.help[0].isupper() and not metric.help.endswith(".")


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_metric_is_bounded(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert all(a < b for a, b in pairwise(metric.buckets))
    for label in metric.labels:
        assert label.values or label.most
        assert label.name not in ("le", "quantile", "job", "instance")


def test_the_docs_show_all_of_them() -> None:
    """`python -m tests.support.metrics.table` writes the table."""
    text = DOCS.read_text()
    assert text == with_table(text)
