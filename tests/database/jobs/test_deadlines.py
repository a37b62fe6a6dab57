"""Deadlines of jobs in SQL: which are over, and how their jobs end."""

from typing import Any

from sqlalchemy import Connection

from deployments.messages import Stage
from serve_app.config import DAY_S
from serve_app.database import access as access_sql
from serve_app.database.connection import Database
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import moves as moves_sql
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.database.jobs.deadlines import cancel_due, due_ids, next_deadline
from serve_app.database.jobs.rows import get_job
from serve_app.database.schema import webhook_deliveries
from serve_app.jobs import Job, JobState, Submission, Usage
from tests.support.registry.sql_jobs import SPEC, accept, claim, end_job


async def insert(database: Database, job_id: str, cancel_after_s: float | None, now: float = 100.0) -> Job:
    submission = Submission(job_id, "mochi-1", SPEC, webhook_url="https://example.com", cancel_after_s=cancel_after_s)
    return (await accept(database, submission, now)).job


async def cancelled(database: Database, job_id: str, now: float, code: str, **how: Any) -> Job:
    """The job, which its deadline ends with this code."""
    job = await database.run(cancel_due, job_id, now=now, **how)
    assert job is not None and job.error is not None
    assert (job.state, job.error.code, job.completed_at, job.lease) == (JobState.CANCELLED, code, now, None)
    assert job == await database.run(get_job, job_id)
    assert (await database.run(moves_sql.history, job_id))[-1].note == code
    return job


async def test_the_first_deadline_of_what_has_not_ended(database: Database) -> None:
    assert await database.run(next_deadline) is None
    for job_id, cancel_after_s in (("a", None), ("b", 50.0), ("c", 20.0), ("d", 10.0)):
        job = await insert(database, job_id, cancel_after_s)
        assert job.cancel_at == (None if cancel_after_s is None else 100.0 + cancel_after_s)
        assert job == await database.run(get_job, job_id)
    await claim(database, Stage.ENCODING, c="t")
    await end_job(database, "d", JobState.CANCELLED, at=105.0)
    assert await database.run(next_deadline) == 120.0
    assert await database.run(due_ids, now=119.9, limit=9) == []
    assert await database.run(due_ids, now=150.0, limit=9) == ["c", "b"]
    assert await database.run(due_ids, now=150.0, limit=1) == ["c"]


async def test_a_job_that_nobody_began(database: Database) -> None:
    await insert(database, "a", 20.0)
    assert await database.run(cancel_due, "a", now=119.9) is None
    job = await cancelled(database, "a", 120.0, "deadline_not_started")
    assert job.error is not None and "1970-01-01 00:02:00 UTC" in job.error.message
    assert "cancel_after" in job.error.message
    assert await database.run(next_deadline) is None


async def test_a_claim_that_reached_no_replica_began_nothing(database: Database) -> None:
    await insert(database, "a", 20.0)
    for token in ("s", "t"):
        await claim(database, Stage.ENCODING, now=101.0, a=token)
        await database.run(claims_sql.give_back, "a", token, now=102.0, note="no replica")
    await cancelled(database, "a", 120.0, "deadline_not_started")
    await insert(database, "b", 20.0)
    await claim(database, Stage.ENCODING, now=101.0, b="t")
    await cancelled(database, "b", 120.0, "deadline_not_started", lease="t", has_begun=False)


async def test_a_job_that_was_begun(database: Database) -> None:
    """Whoever holds it now, and what its replica used since is counted."""
    used = Usage(5, 1.5)
    await insert(database, "held", 20.0)
    await claim(database, Stage.ENCODING, held="t")
    held = await cancelled(database, "held", 120.0, "deadline_not_ready", lease="t", used=used)
    assert (held.steps_run, held.device_s) == (5, 1.5)
    await insert(database, "elsewhere", 20.0)
    await claim(database, Stage.ENCODING, elsewhere="theirs")
    elsewhere = await cancelled(database, "elsewhere", 120.0, "deadline_not_ready", lease="t", used=used)
    assert elsewhere.device_s == 0.0
    await insert(database, "between", 20.0)
    await claim(database, Stage.ENCODING, between="t")
    await database.run(ends_sql.finish_stage, "between", "t", seconds={}, now=110.0, used=Usage(0, 0.25))
    await claim(database, Stage.SAMPLING, now=111.0, between="s")
    await database.run(claims_sql.give_back, "between", "s", now=112.0, note="no replica")
    await cancelled(database, "between", 120.0, "deadline_not_ready")
    usage = await database.run(access_sql.day_usage, "default", day=int(120.0 // DAY_S))
    assert (usage.gpu_seconds, usage.videos) == (1.75, 3)


async def test_a_job_that_ended_a_moment_earlier_stays_as_it_is(database: Database) -> None:
    for job_id, state in (("a", JobState.COMPLETED), ("b", JobState.FAILED), ("c", JobState.CANCELLED)):
        await insert(database, job_id, 20.0)
        await end_job(database, job_id, state, at=119.0)
        before = await database.run(get_job, job_id)
        assert before is not None and await database.run(cancel_due, job_id, now=120.0) == before
        assert before.state is state and await database.run(get_job, job_id) == before


async def test_a_job_without_a_deadline_or_that_there_is_not(database: Database) -> None:
    await insert(database, "a", None)
    assert await database.run(cancel_due, "a", now=1e9) is None
    assert await database.run(cancel_due, "b", now=1e9) is None


async def test_its_webhook_is_told_once(database: Database) -> None:
    def deliveries(connection: Connection) -> list[tuple[str, str]]:
        rows = connection.execute(webhook_deliveries.select())
        return [(row.job_id, row.type) for row in rows]

    await insert(database, "a", 20.0)
    for now in (120.0, 121.0):
        await database.run(cancel_due, "a", now=now)
    assert await database.run(deliveries) == [("a", "video.cancelled")]
