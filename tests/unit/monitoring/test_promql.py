"""Expressions are made of metrics, and of nothing that these do not have."""

import pytest

from deployments.metrics import names
from monitoring.promql import PromQL

BOARD = PromQL(matchers=('job="$job"',), window="1m")
ALERT = PromQL(keep=("job",))


def test_what_several_read_counts_once() -> None:
    assert BOARD.now(names.JOBS_LIVE) == 'sum(max by (state) (mochi_serve_jobs_live{job="$job"}))'
    assert ALERT.now(names.JOBS_UNACCOUNTED) == "max by (job) (mochi_serve_jobs_unaccounted)"
    assert ALERT.rate(names.STEPS_RUN, "tenant") == "max by (job, tenant) (rate(mochi_serve_steps_run_total[5m]))"


def test_a_gauge_that_processes_share_is_not_added_up() -> None:
    assert BOARD.now(names.DISK_USED) == 'max(max by (disk) (mochi_serve_disk_used_ratio{job="$job"}))'


def test_a_quantile_is_of_the_buckets() -> None:
    assert BOARD.quantile(0.5, names.STEP_ROWS, window="1h") == (
        'histogram_quantile(0.5, max by (le) (rate(mochi_serve_step_rows_bucket{job="$job"}[1h])))'
    )


def test_matchers_are_as_they_are_written() -> None:
    assert ALERT.now(names.JOBS_LIVE, state="~queued|sampling").endswith('{state=~"queued|sampling"}))')
    assert ALERT.now(names.JOBS_LIVE, state="!queued").endswith('{state!="queued"}))')
    assert ALERT.now(names.JOBS_LIVE, state="!~q.*").endswith('{state!~"q.*"}))')


def test_a_label_that_the_metric_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="mochi_serve_jobs_live has no label tier; it has state"):
        BOARD.now(names.JOBS_LIVE, "tier")
    with pytest.raises(ValueError, match="has no label code"):
        BOARD.rate(names.STEPS_RUN, code="x")


def test_a_histogram_has_no_value_of_its_own() -> None:
    with pytest.raises(AssertionError, match="is a histogram"):
        BOARD.now(names.STEP_ROWS)


def test_a_bound_must_be_a_bucket() -> None:
    with pytest.raises(AssertionError, match="is no bucket"):
        ALERT.below(1.6, names.FORECAST_RATIO, window="1h")
