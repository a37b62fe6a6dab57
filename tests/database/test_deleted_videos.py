"""Deleting a video in SQL: what goes at once, the tombstone, and what is known of its files."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, func, insert, select

from deployments.messages import Stage, VideoSpec
from serve_app.database import jobs as jobs_sql
from serve_app.database import retention as retention_sql
from serve_app.database.connection import Database
from serve_app.database.intake import insert_job
from serve_app.database.job_rows import get_job
from serve_app.database.retention import LATE_WRITES_S, DeletedVideo, delete_ended_job
from serve_app.database.schema import idempotency_keys, job_moves, jobs, webhook_deliveries
from serve_app.jobs import FINAL, Job, JobError, JobState, Submission, Usage

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 1)
ABOUT_A_JOB = (job_moves, idempotency_keys, webhook_deliveries)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def _delivery(delivery_id: str, job_id: str, next_at: float | None) -> dict[str, object]:
    told = {"tenant": "acme", "url": "https://a.example/", "type": "video.completed", "created_at": 1.0}
    return {"id": delivery_id, "job_id": job_id, "next_at": next_at, **told}


async def _accept(database: Database, job_id: str) -> None:
    submission = Submission(job_id, "mochi-1", SPEC, "acme", idempotency_key=f"key of {job_id}", fingerprint="f")
    await database.run(insert_job, submission, now=0.0, keep_keys_s=1e9)

    def told(connection: Connection) -> None:
        pending = [_delivery(f"pending {job_id}", job_id, 9.0), _delivery(f"taken {job_id}", job_id, None)]
        connection.execute(insert(webhook_deliveries), pending)

    await database.run(told)


async def _end(database: Database, job_id: str, state: JobState) -> None:
    if state is JobState.CANCELLED:
        await database.run(jobs_sql.cancel, job_id, now=5.0)
        return
    for stage in Stage:
        await database.run(jobs_sql.claim, stage=stage, leases={job_id: "t"}, owner="here", now=1.0, lease_s=30.0)
        if state is JobState.FAILED:
            await database.run(jobs_sql.fail, job_id, "t", now=5.0, error=JobError("x", "y"), used=Usage())
            return
        await database.run(jobs_sql.finish_stage, job_id, "t", seconds={}, now=5.0, used=Usage(device_s=1.0))


async def _deleted(database: Database, *job_ids: str, at: float = 10.0) -> None:
    for job_id in job_ids:
        await _accept(database, job_id)
        await database.run(jobs_sql.cancel, job_id, now=at)
        assert await database.run(delete_ended_job, job_id, now=at) is not None


def _left(connection: Connection) -> list[int]:
    tables = (jobs, *ABOUT_A_JOB)
    return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]


@pytest.mark.parametrize("state", sorted(FINAL))
async def test_a_deleted_job_leaves_a_tombstone_and_what_was_told_of_it(database: Database, state: JobState) -> None:
    await _accept(database, "a")
    await _end(database, "a", state)
    before = await database.run(get_job, "a")
    assert await database.run(delete_ended_job, "a", now=10.0) == before
    assert await database.run(get_job, "a") is None
    assert await database.run(_left) == [0, 0, 0, 2]  # its webhooks are still sent
    assert await database.run(retention_sql.get_deleted_video, "a") == DeletedVideo("a", "acme", 10.0)
    assert await database.run(retention_sql.deleted_videos_with_files, limit=10) == ["a"]


async def test_other_jobs_keep_all(database: Database) -> None:
    await _accept(database, "b")
    await _end(database, "b", JobState.FAILED)
    before = await database.run(_left)
    await _accept(database, "a")
    await _end(database, "a", JobState.FAILED)
    await database.run(delete_ended_job, "a", now=10.0)
    assert await database.run(_left) == [*before[:3], before[3] + 2]
    assert await database.run(retention_sql.get_deleted_video, "b") is None


async def test_its_idempotency_key_is_free_again(database: Database) -> None:
    await _deleted(database, "a")
    again = Submission("new", "mochi-1", SPEC, "acme", idempotency_key="key of a", fingerprint="another")
    assert not (await database.run(insert_job, again, now=11.0, keep_keys_s=1e9)).repeated


@pytest.mark.parametrize("running", [False, True])
async def test_a_live_job_stays_as_it_is(database: Database, running: bool) -> None:
    await _accept(database, "a")
    if running:
        await database.run(jobs_sql.claim, stage=Stage.ENCODING, leases={"a": "t"}, owner="here", now=1.0, lease_s=30.0)
    before, rows = await database.run(get_job, "a"), await database.run(_left)
    assert await database.run(delete_ended_job, "a", now=10.0) == before
    assert await database.run(_left) == rows
    assert await database.run(retention_sql.get_deleted_video, "a") is None


async def test_cancelled_and_deleted_in_one_transaction(database: Database) -> None:
    await _accept(database, "a")
    await database.run(jobs_sql.claim, stage=Stage.ENCODING, leases={"a": "t"}, owner="here", now=1.0, lease_s=30.0)

    def cancel_and_delete(connection: Connection, and_then: BaseException | None) -> Job | None:
        jobs_sql.cancel(connection, "a", now=10.0)
        job = delete_ended_job(connection, "a", now=10.0)
        if and_then is not None:
            raise and_then
        return job

    with pytest.raises(ArithmeticError):
        await database.run(cancel_and_delete, ArithmeticError())
    kept = await database.run(get_job, "a")
    assert kept is not None and kept.state is JobState.ENCODING
    assert await database.run(retention_sql.get_deleted_video, "a") is None
    job = await database.run(cancel_and_delete, None)
    assert job is not None and job.state is JobState.CANCELLED
    assert await database.run(_left) == [0, 0, 0, 2]  # its webhooks are still sent
    assert not await database.run(jobs_sql.renew, "a", "t", expires_at=99.0, step=1, progress=0.1, used=Usage())
    assert await database.run(jobs_sql.finish_stage, "a", "t", seconds={}, now=11.0, used=Usage(device_s=1.0)) is None


async def test_what_is_not_there_is_none(database: Database) -> None:
    assert await database.run(delete_ended_job, "a", now=10.0) is None
    assert await database.run(retention_sql.get_deleted_video, "a") is None
    await _deleted(database, "b")
    assert await database.run(delete_ended_job, "b", now=20.0) is None
    assert await database.run(retention_sql.get_deleted_video, "b") == DeletedVideo("b", "acme", 10.0)


async def test_files_are_deleted_at_once_and_again_when_no_worker_writes_any_more(database: Database) -> None:
    await _deleted(database, "late", at=12.0)
    await _deleted(database, "early", at=11.0)
    assert await database.run(retention_sql.deleted_videos_with_files, limit=10) == ["early", "late"]
    assert await database.run(retention_sql.deleted_videos_with_files, limit=1) == ["early"]
    await database.run(retention_sql.mark_video_files_deleted, ["early", "late"], now=13.0)
    assert await database.run(retention_sql.deleted_videos_with_files, limit=10) == []

    async def with_late_files(now: float, limit: int = 10) -> list[str]:
        return await database.run(retention_sql.deleted_videos_with_late_files, now=now, limit=limit)

    assert await with_late_files(11.0 + LATE_WRITES_S - 1) == []
    assert await with_late_files(11.0 + LATE_WRITES_S) == ["early"]
    assert await with_late_files(1e6) == ["early", "late"]
    assert await with_late_files(1e6, 1) == ["early"]
    await database.run(retention_sql.mark_video_files_deleted, ["early"], now=11.0 + LATE_WRITES_S)
    assert await with_late_files(1e6) == ["late"]


async def test_files_that_were_deleted_late_enough_need_no_second_time(database: Database) -> None:
    await _deleted(database, "a")
    await database.run(retention_sql.mark_video_files_deleted, ["a"], now=10.0 + LATE_WRITES_S)
    assert await database.run(retention_sql.deleted_videos_with_late_files, now=1e6, limit=10) == []


async def test_a_tombstone_is_forgotten_when_its_files_are_gone_for_good(database: Database) -> None:
    await _deleted(database, "with files", "with late files", "clean")
    await _deleted(database, "young", at=30.0)
    await database.run(retention_sql.mark_video_files_deleted, ["with late files"], now=11.0)
    await database.run(retention_sql.mark_video_files_deleted, ["clean", "young"], now=11.0 + 2 * LATE_WRITES_S)
    assert await database.run(retention_sql.forget_deleted_videos, before=10.0) == 0
    assert await database.run(retention_sql.forget_deleted_videos, before=30.0) == 1
    for job_id in ("with files", "with late files", "young"):
        assert await database.run(retention_sql.get_deleted_video, job_id) is not None
    assert await database.run(retention_sql.get_deleted_video, "clean") is None


async def test_long_lists_are_taken_whole(database: Database) -> None:
    ids = [f"job{n:04}" for n in range(1100)]

    def fill(connection: Connection) -> None:
        for job_id in ids:
            insert_job(connection, Submission(job_id, "mochi-1", SPEC), now=0.0, keep_keys_s=1.0)
            jobs_sql.cancel(connection, job_id, now=1.0)
            delete_ended_job(connection, job_id, now=1.0)

    await database.run(fill)
    assert await database.run(retention_sql.deleted_videos_with_files, limit=2000) == ids
    await database.run(retention_sql.mark_video_files_deleted, ids, now=1.0 + LATE_WRITES_S)
    assert await database.run(retention_sql.forget_deleted_videos, before=2.0) == 1100
