"""From sums over jobs to metrics."""

from deployments.metrics import names
from deployments.metrics.recorder import Series, Value
from serve_app.database.jobs.totals import Amounts, Totals, TotalsKey
from serve_app.metrics.job_values import job_values

AMOUNTS = {
    TotalsKey("a", "batch", "accepted"): Amounts(5),
    TotalsKey("b", "batch", "accepted"): Amounts(2),
    TotalsKey("c", "batch", "accepted"): Amounts(2),
    TotalsKey("a", "batch", "completed"): Amounts(2, 10.0, 40, 3, 1),
    TotalsKey("a", "batch", "failed", "broken"): Amounts(1, 2.0, 4),
    TotalsKey("a", "batch", "queued"): Amounts(1),
    TotalsKey("a", "batch", "sampling"): Amounts(1, 1.0, 2),
    TotalsKey("b", "batch", "cancelled", "cancelled"): Amounts(2),
    TotalsKey("c", "batch", "queued"): Amounts(2, 0.5),
    TotalsKey("c", "batch", "retried", "replica_died"): Amounts(6),
}


def values(most_tenants: int = 50, **changed: Amounts) -> dict[Series, Value]:
    amounts = AMOUNTS | {TotalsKey("a", "batch", outcome): amount for outcome, amount in changed.items()}
    totals = Totals(amounts, {("batch", "a"): 90.0, ("batch", "c"): 105.0}, ("a", "b", "c"), {})
    return job_values(totals, {("batch", "c"): 7.0, ("batch", "a"): 1.0}, now=100.0, most_tenants=most_tenants)


def of(metric: str, found: dict[Series, Value]) -> dict[tuple[str, ...], Value]:
    return {labels: value for (name, labels), value in found.items() if name == f"{names.PREFIX}{metric}"}


def test_each_job_is_in_the_sums_once() -> None:
    found = values()
    assert of("jobs_accepted_total", found) == {("batch", "a"): 5, ("batch", "b"): 2, ("batch", "c"): 2}
    ended = {labels: value for labels, value in of("jobs_ended_total", found).items() if value}
    assert ended == {("completed", "batch", "a"): 2, ("failed", "batch", "a"): 1, ("cancelled", "batch", "b"): 2}
    assert of("jobs_live", found) == {("queued",): 3, ("sampling",): 1}
    assert of("jobs_failed_total", found) == {("broken",): 1}
    assert of("jobs_unaccounted", found) == {(): 0}
    assert of("gpu_seconds_total", found) == {("a",): 13.0, ("b",): 0, ("c",): 0.5}
    assert of("steps_run_total", found) == {("a",): 46, ("b",): 0, ("c",): 0}
    assert (of("steps_repeated_total", found), of("parks_total", found)) == ({(): 3}, {(): 1})
    assert of("retries_total", found) == {("replica_died",): 6}


def test_a_job_that_is_in_no_sum_shows() -> None:
    assert of("jobs_unaccounted", values(accepted=Amounts(6))) == {(): 1}


def test_the_queue_is_told_by_tenant_and_an_empty_one_is_0() -> None:
    found = values()
    assert of("queue_jobs", found) == {("batch", "a"): 1, ("batch", "b"): 0, ("batch", "c"): 2}
    # A job that pauses waits for nothing yet.
    assert of("queue_oldest_wait_seconds", found) == {("batch", "a"): 10.0, ("batch", "b"): 0, ("batch", "c"): 0}
    assert of("queue_gpu_seconds", found) == {("batch", "a"): 1.0, ("batch", "b"): 0, ("batch", "c"): 7.0}


def test_tenants_beyond_the_number_are_folded_and_nothing_is_lost() -> None:
    found = values(most_tenants=1)
    assert of("jobs_accepted_total", found) == {("batch", "a"): 5, ("batch", "other"): 4}
    assert of("gpu_seconds_total", found) == {("a",): 13.0, ("other",): 0.5}
    assert of("queue_jobs", found) == {("batch", "a"): 1, ("batch", "other"): 2}
    assert of("jobs_unaccounted", found) == {(): 0}
