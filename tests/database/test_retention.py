from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, func, select

from deployments.messages import Stage, VideoSpec
from serve_app.database import jobs as jobs_sql
from serve_app.database import meta as meta_sql
from serve_app.database import retention as retention_sql
from serve_app.database.connection import Database
from serve_app.database.intake import insert_job
from serve_app.database.schema import idempotency_keys, job_moves
from serve_app.jobs import JobError, JobState, Submission, Usage

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 1)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


async def job_that_ended(database: Database, job_id: str, state: JobState, at: float) -> None:
    submission = Submission(job_id, "mochi-1", SPEC, idempotency_key=f"key of {job_id}", fingerprint="f")
    await database.run(insert_job, submission, now=0.0, keep_keys_s=1e9)
    if state is JobState.CANCELLED:
        await database.run(jobs_sql.cancel, job_id, now=at)
        return
    for stage in Stage:
        await database.run(jobs_sql.claim, stage=stage, leases={job_id: "t"}, owner="here", now=1.0, lease_s=30.0)
        if state is JobState.FAILED:
            await database.run(jobs_sql.fail, job_id, "t", now=at, error=JobError("x", "y"), used=Usage())
        else:
            await database.run(jobs_sql.finish_stage, job_id, "t", seconds={}, now=at, used=Usage(device_s=1.0))


@pytest.fixture
async def ended(database: Database) -> Database:
    """c1, c3 completed, f2 failed, x4 cancelled, each at that time; `w` waits, `r` runs."""
    for job_id in ("w", "r"):
        await database.run(insert_job, Submission(job_id, "mochi-1", SPEC), now=0.0, keep_keys_s=1e9)
    await database.run(jobs_sql.claim, stage=Stage.ENCODING, leases={"r": "t"}, owner="here", now=1.0, lease_s=30.0)
    await job_that_ended(database, "c3", JobState.COMPLETED, 3.0)
    await job_that_ended(database, "f2", JobState.FAILED, 2.0)
    await job_that_ended(database, "x4", JobState.CANCELLED, 4.0)
    await job_that_ended(database, "c1", JobState.COMPLETED, 1.0)
    return database


def _leftovers(connection: Connection) -> tuple[int, int]:
    counts = (select(func.count()).select_from(table) for table in (job_moves, idempotency_keys))
    return tuple(connection.execute(count).scalar_one() for count in counts)  # type: ignore[return-value]


async def test_every_ended_job_has_work_files_until_they_are_cleared(ended: Database) -> None:
    assert await ended.run(retention_sql.jobs_with_work_files, limit=10) == ["c1", "f2", "c3", "x4"]
    assert await ended.run(retention_sql.jobs_with_work_files, limit=2) == ["c1", "f2"]
    await ended.run(retention_sql.mark_work_files_deleted, ["c1", "c3", "r"])
    assert await ended.run(retention_sql.jobs_with_work_files, limit=10) == ["f2", "x4"]
    await ended.run(jobs_sql.cancel, "r", now=9.0)  # it ran when the others were cleared
    assert await ended.run(retention_sql.jobs_with_work_files, limit=10) == ["f2", "x4", "r"]


async def test_jobs_expire_by_how_they_ended(ended: Database) -> None:
    async def expired(completed: float | None, failed: float | None, limit: int = 10) -> list[str]:
        return await ended.run(
            retention_sql.expired_jobs, completed_before=completed, failed_before=failed, limit=limit
        )

    assert await expired(3.0, None) == ["c1"]
    assert await expired(None, 4.5) == ["f2", "x4"]
    assert await expired(9.0, 4.0) == ["c1", "f2", "c3"]
    assert await expired(9.0, 9.0, 3) == ["c1", "f2", "c3"]
    assert await expired(None, None) == []


async def test_a_deleted_job_leaves_nothing_behind_and_a_live_one_stays(ended: Database) -> None:
    await ended.run(retention_sql.delete_expired_jobs, ["c1", "f2", "c3", "x4", "w", "r", "unknown"])
    left = await ended.run(retention_sql.job_states, ["c1", "f2", "c3", "x4", "w", "r"])
    assert left == {"w": JobState.QUEUED, "r": JobState.ENCODING}
    assert await ended.run(_leftovers) == (1, 0)
    again = Submission("new", "mochi-1", SPEC, idempotency_key="key of c1", fingerprint="another")
    assert not (await ended.run(insert_job, again, now=0.0, keep_keys_s=1e9)).repeated


async def test_long_lists_are_taken_whole(database: Database) -> None:
    ids = [f"job{n}" for n in range(1100)]

    def fill(connection: Connection) -> None:
        for job_id in ids:
            insert_job(connection, Submission(job_id, "mochi-1", SPEC), now=0.0, keep_keys_s=1.0)
            jobs_sql.cancel(connection, job_id, now=1.0)

    await database.run(fill)
    assert len(await database.run(retention_sql.job_states, ids)) == 1100
    await database.run(retention_sql.mark_work_files_deleted, ids)
    assert await database.run(retention_sql.jobs_with_work_files, limit=2000) == []
    await database.run(retention_sql.delete_expired_jobs, ids)
    assert await database.run(retention_sql.job_states, ids) == {}


async def test_an_installation_keeps_its_name(database_url: str, database: Database) -> None:
    name = await database.run(meta_sql.installation_id)
    other = Database(database_url)
    assert await other.run(meta_sql.installation_id) == name
    assert len(name) == 32
    other.close()


async def test_a_touch_can_be_repeated(database: Database) -> None:
    for now in (1.0, 2.0):
        await database.run(meta_sql.touch, now=now)
