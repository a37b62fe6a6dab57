"""Sums over all jobs: they equal what the rows say, and stay when rows are deleted."""

from dataclasses import replace

import pytest
from sqlalchemy import Connection, select

from deployments.messages import Stage
from deployments.metrics import names
from serve_app.database.connection import Database
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.database.jobs.deletion import delete_expired_jobs
from serve_app.database.jobs.intake import insert_job
from serve_app.database.jobs.totals import ACCEPTED, RETRIED, Amounts, Totals, TotalsKey, count_accepted, read_totals
from serve_app.database.schema import job_totals
from serve_app.jobs import JobError, JobState, Submission, Tier, Usage
from tests.support.registry.world import SPEC


async def submit(database: Database, job_id: str, tenant: str = "a", now: float = 100.0) -> None:
    submission = Submission(job_id, "m", SPEC, tenant=tenant, tier=Tier.BATCH)
    await database.run(insert_job, submission, now=now, keep_keys_s=60.0)


async def claim(database: Database, job_id: str, stage: Stage, now: float) -> None:
    leases = {job_id: f"{job_id} {stage}"}
    assert await database.run(claims_sql.claim, stage=stage, leases=leases, owner="o", now=now, lease_s=30.0)


async def finish(database: Database, job_id: str, stage: Stage, now: float, used: Usage, **seconds: float) -> None:
    lease = f"{job_id} {stage}"
    assert await database.run(ends_sql.finish_stage, job_id, lease, seconds=seconds, now=now, used=used)


async def complete(database: Database, job_id: str, at: float) -> None:
    """Claimed at once, and completed at `at` after three stages of a GPU-second each."""
    await claim(database, job_id, Stage.ENCODING, 110.0)
    await finish(database, job_id, Stage.ENCODING, 111.0, Usage(device_s=1.0), encode=0.5, store=0.25)
    await claim(database, job_id, Stage.SAMPLING, 112.0)
    steps = SPEC.num_inference_steps
    await finish(database, job_id, Stage.SAMPLING, 120.0, Usage(steps, 1.0), load=5.0, denoise=7.0, store=0.25)
    await claim(database, job_id, Stage.DECODING, 121.0)
    await finish(database, job_id, Stage.DECODING, at, Usage(device_s=1.0), decode=2.0, mp4=1.0, store=0.5)


def ended(totals: Totals, state: JobState) -> Amounts:
    return totals.sum(lambda key: key.outcome == state)


async def test_a_job_is_counted_in_each_of_its_states_once(database: Database) -> None:
    await submit(database, "1")
    await submit(database, "1")  # repeated
    totals = await database.run(read_totals)
    assert totals.amounts == {
        TotalsKey("a", "batch", ACCEPTED): Amounts(jobs=1),
        TotalsKey("a", "batch", JobState.QUEUED): Amounts(jobs=1),
    }
    assert totals.waiting_since == {("batch", "a"): 100.0}
    await complete(database, "1", at=130.0)
    totals = await database.run(read_totals)
    assert totals.amounts == {
        TotalsKey("a", "batch", ACCEPTED): Amounts(jobs=1),
        TotalsKey("a", "batch", JobState.COMPLETED): Amounts(1, 3.0, SPEC.num_inference_steps),
    }
    assert totals.waiting_since == {}


async def test_a_completed_job_is_in_each_histogram_with_its_own_time(database: Database) -> None:
    await submit(database, "1")
    await complete(database, "1", at=130.0)
    times = (await database.run(read_totals)).times
    assert {name.removeprefix(names.PREFIX): (sum(d.counts), d.total) for (name, _), d in times.items()} == {
        "job_wait_seconds": (1, 10.0),
        "job_encode_seconds": (1, 0.5),
        "job_sample_seconds": (1, 7.0),
        "job_decode_seconds": (1, 3.0),
        "job_upload_seconds": (1, 1.0),
        "job_end_to_end_seconds": (1, 30.0),
    }
    end_to_end = times[names.JOB_END_TO_END.name, "batch"]
    assert end_to_end.counts[names.JOB_END_TO_END.buckets.index(30)] == 1  # a bound belongs to its bucket


async def test_lost_steps_are_counted_when_they_are_lost(database: Database) -> None:
    await submit(database, "1")
    await claim(database, "1", Stage.ENCODING, 110.0)
    await finish(database, "1", Stage.ENCODING, 111.0, Usage())
    await claim(database, "1", Stage.SAMPLING, 112.0)
    await database.run(claims_sql.keep_checkpoint, "1", "1 sampling", step=2)
    await database.run(
        ends_sql.retry,
        "1",
        "1 sampling",
        now=113.0,
        available_at=114.0,
        code="replica_died",
        note="",
        attempt=1,
        used=Usage(steps=5, device_s=2.0),
        deaths=1,
        died_at=0.1,
    )
    totals = await database.run(read_totals)
    assert totals.amounts[TotalsKey("a", "batch", RETRIED, "replica_died")].jobs == 1
    assert ended(totals, JobState.QUEUED) == Amounts(1, 2.0, steps_run=5, steps_repeated=3)
    assert totals.waiting_since == {("batch", "a"): 114.0}


async def test_what_is_deleted_stays_in_the_sums(database: Database) -> None:
    await submit(database, "done")
    await complete(database, "done", at=130.0)
    await submit(database, "bad", tenant="b", now=200.0)
    await claim(database, "bad", Stage.ENCODING, 210.0)
    error = JobError("broken", "it broke")
    await database.run(ends_sql.fail, "bad", "bad encoding", now=211.0, error=error, used=Usage(device_s=4.0))
    before = await database.run(read_totals)
    await database.run(delete_expired_jobs, ["done", "bad"])
    assert await database.run(read_totals) == before
    await submit(database, "live", tenant="b", now=300.0)
    await database.run(cancellation_sql.delete, "live", tenant=None, now=301.0)
    totals = await database.run(read_totals)
    assert ended(totals, JobState.CANCELLED).jobs == 1
    assert totals.amounts[TotalsKey("b", "batch", JobState.FAILED, "broken")] == Amounts(1, 4.0)
    assert totals.tenants == ("a", "b")


async def test_what_is_rolled_back_is_not_counted(database: Database) -> None:
    def insert_and_fail(connection: Connection) -> None:
        insert_job(connection, Submission("2", "m", SPEC, tenant="b"), now=1.0, keep_keys_s=60.0)
        raise KeyError("after the write")

    with pytest.raises(KeyError):
        await database.run(insert_and_fail)
    await submit(database, "1")
    assert {key.tenant for key in (await database.run(read_totals)).amounts} == {"a"}


async def test_a_transaction_writes_each_row_once_in_the_order_of_the_rows(database: Database) -> None:
    def count_twice(connection: Connection) -> list[tuple[str, int]]:
        for tenant in ("b", "a", "b"):
            count_accepted(connection, replace(Submission("x", "m", SPEC, tenant=tenant).accepted(1.0)))
        return [tuple(row) for row in connection.execute(select(job_totals.c.tenant, job_totals.c.jobs))]

    assert await database.run(count_twice) == []
    rows = select(job_totals.c.tenant, job_totals.c.jobs)
    assert await database.run(lambda c: [tuple(row) for row in c.execute(rows)]) == [("a", 1), ("b", 2)]


async def test_a_bound_of_another_version_counts_to_the_next_one_above(database: Database) -> None:
    def write(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO job_times VALUES ('wait', 'batch', '45.0', 2, 80.0)")
        connection.exec_driver_sql("INSERT INTO job_times VALUES ('gone', 'batch', '45.0', 2, 80.0)")

    await database.run(write)
    (found,) = (await database.run(read_totals)).times.items()
    assert found[0] == (names.JOB_WAIT.name, "batch")
    assert found[1].counts[names.JOB_WAIT.buckets.index(60)] == 2
