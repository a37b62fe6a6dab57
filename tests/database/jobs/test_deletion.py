"""What ended and goes, in SQL: work files, expired jobs, and videos that their clients deleted."""

from dataclasses import replace
from typing import NamedTuple

import pytest
from sqlalchemy import Connection, func, insert, select

from deployments.messages import Stage
from serve_app.config import DAY_S
from serve_app.database.connection import Database
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import deletion as deletion_sql
from serve_app.database.jobs import moves as moves_sql
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.database.jobs.deletion import LATE_WRITES_S, DeletedVideo, delete_ended_job
from serve_app.database.jobs.intake import find_accepted, insert_job
from serve_app.database.jobs.listing import list_jobs
from serve_app.database.jobs.rows import get_job, read_job
from serve_app.database.schema import deleted_videos, idempotency_keys, job_moves, jobs, webhook_deliveries
from serve_app.errors import UnknownJobError
from serve_app.jobs import FINAL, NOTHING_EXPIRES, Expiry, Job, JobFilter, JobState, Submission, Usage
from tests.support.registry.retention import job_row
from tests.support.registry.sql_jobs import SPEC, accept, claim, end_job


class Rows(NamedTuple):
    """How many rows each table has."""

    jobs: int
    moves: int
    keys: int
    deliveries: int


def count_rows(connection: Connection) -> Rows:
    tables = (jobs, job_moves, idempotency_keys, webhook_deliveries)
    return Rows(*(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables))


async def accept_with_all(database: Database, job_id: str) -> None:
    """A job of a tenant with an idempotency key and two webhooks, one of them taken."""
    submission = Submission(job_id, "mochi-1", SPEC, "acme", idempotency_key=f"key of {job_id}", fingerprint="f")
    await accept(database, submission, 0.0)
    event = {"tenant": "acme", "url": "https://a.example/", "type": "video.completed", "created_at": 1.0}

    def add_deliveries(connection: Connection) -> None:
        for name, next_at in (("pending", 9.0), ("taken", None)):
            row = {"id": f"{name} {job_id}", "job_id": job_id, "next_at": next_at, **event}
            connection.execute(insert(webhook_deliveries), row)

    await database.run(add_deliveries)


# Work files and expiry


@pytest.fixture
async def ended(database: Database) -> Database:
    """c1, c3 completed, f2 failed, x4 cancelled, each at that time; `w` waits, `r` runs."""
    for job_id in ("w", "r"):
        await accept(database, Submission(job_id, "mochi-1", SPEC), 0.0)
    await claim(database, Stage.ENCODING, now=1.0, r="t")
    states = {"c": JobState.COMPLETED, "f": JobState.FAILED, "x": JobState.CANCELLED}
    for job_id in ("c3", "f2", "x4", "c1"):
        await accept_with_all(database, job_id)
        await end_job(database, job_id, states[job_id[0]], at=float(job_id[1]))
    return database


COMPLETED_EXPIRED = Expiry(1000.0, completed_s=0.5)


async def test_what_has_expired_is_read_nowhere(database: Database) -> None:
    keyed = Submission("c", "mochi-1", SPEC, idempotency_key="k", fingerprint="f")
    for submission in (keyed, Submission("f", "mochi-1", SPEC), Submission("w", "mochi-1", SPEC)):
        await accept(database, submission, 1.0)
    await end_job(database, "c", JobState.COMPLETED, 999.0)
    await end_job(database, "f", JobState.FAILED, 999.0)

    async def seen(expiry: Expiry) -> list[str]:
        wanted = JobFilter(expiry=expiry)
        listed = [job.id for job in (await database.run(list_jobs, limit=9, order="asc", wanted=wanted)).jobs]
        assert listed == [id_ for id_ in "cfw" if await database.run(read_job, id_, expiry=expiry)]
        assert listed == [id_ for id_ in "cfw" if await database.run(moves_sql.history, id_, expiry=expiry)]
        return listed

    assert await seen(Expiry(999.5, 0.5, 0.5)) == ["c", "f", "w"]
    assert await seen(COMPLETED_EXPIRED) == ["f", "w"]
    assert await seen(Expiry(1000.0, failed_s=0.5)) == ["c", "w"]
    assert await seen(Expiry(2000.0, 0.5, 0.5)) == ["w"]
    with pytest.raises(UnknownJobError):
        await database.run(list_jobs, limit=9, after="c", wanted=JobFilter(expiry=COMPLETED_EXPIRED))


async def test_what_has_expired_is_no_longer_deleted_nor_found_by_its_key(database: Database) -> None:
    keyed = Submission("c", "mochi-1", SPEC, idempotency_key="k", fingerprint="f")
    await accept(database, keyed, 1.0)
    await end_job(database, "c", JobState.COMPLETED, 999.0)
    assert await database.run(cancellation_sql.delete, "c", tenant=None, now=1000.0, expiry=COMPLETED_EXPIRED) is None
    again = replace(keyed, job_id="d", fingerprint="another")
    looked = await database.run(find_accepted, again, now=1000.0, keep_keys_s=DAY_S, expiry=COMPLETED_EXPIRED)
    assert looked is None
    accepted = await database.run(insert_job, again, now=1000.0, keep_keys_s=DAY_S, expiry=COMPLETED_EXPIRED)
    assert (accepted.job.id, accepted.repeated) == ("d", False)
    assert await database.run(read_job, "c", expiry=NOTHING_EXPIRES) is not None, (
        "the sweeper deletes it with its files"
    )


async def test_every_ended_job_has_work_files_until_they_are_cleared(ended: Database) -> None:
    assert await ended.run(deletion_sql.jobs_with_work_files, limit=10) == ["c1", "f2", "c3", "x4"]
    assert await ended.run(deletion_sql.jobs_with_work_files, limit=2) == ["c1", "f2"]
    await ended.run(deletion_sql.mark_work_files_deleted, ["c1", "c3", "r"])
    assert await ended.run(deletion_sql.jobs_with_work_files, limit=10) == ["f2", "x4"]
    await ended.run(cancellation_sql.cancel, "r", now=9.0)  # it ran when the others were cleared
    assert await ended.run(deletion_sql.jobs_with_work_files, limit=10) == ["f2", "x4", "r"]


async def test_jobs_expire_by_how_they_ended(ended: Database) -> None:
    async def expired(completed: float | None, failed: float | None, limit: int = 10) -> list[str]:
        return await ended.run(deletion_sql.expired_jobs, completed_before=completed, failed_before=failed, limit=limit)

    assert await expired(3.0, None) == ["c1"]
    assert await expired(None, 4.5) == ["f2", "x4"]
    assert await expired(9.0, 4.0) == ["c1", "f2", "c3"]
    assert await expired(9.0, 9.0, 3) == ["c1", "f2", "c3"]
    assert await expired(None, None) == []


async def test_a_deleted_job_leaves_nothing_behind_and_a_live_one_stays(ended: Database) -> None:
    await ended.run(deletion_sql.delete_expired_jobs, ["c1", "f2", "c3", "x4", "w", "r", "unknown"])
    left = await ended.run(deletion_sql.job_states, ["c1", "f2", "c3", "x4", "w", "r"])
    assert left == {"w": JobState.QUEUED, "r": JobState.ENCODING}
    assert await ended.run(count_rows) == Rows(jobs=2, moves=1, keys=0, deliveries=0)
    again = Submission("new", "mochi-1", SPEC, idempotency_key="key of c1", fingerprint="another")
    assert not (await accept(ended, again, 0.0)).repeated


async def test_long_lists_are_taken_whole(database: Database) -> None:
    ids = [f"job{n}" for n in range(1100)]

    def fill(connection: Connection) -> None:
        connection.execute(insert(jobs), [job_row(job_id, JobState.CANCELLED, 1.0) for job_id in ids])

    await database.run(fill)
    assert len(await database.run(deletion_sql.job_states, ids)) == 1100
    await database.run(deletion_sql.mark_work_files_deleted, ids)
    assert await database.run(deletion_sql.jobs_with_work_files, limit=2000) == []
    await database.run(deletion_sql.delete_expired_jobs, ids)
    assert await database.run(deletion_sql.job_states, ids) == {}


# Deleted videos


async def add_deleted(database: Database, *job_ids: str, at: float = 10.0) -> None:
    for job_id in job_ids:
        await accept_with_all(database, job_id)
        await database.run(cancellation_sql.cancel, job_id, now=at)
        assert await database.run(delete_ended_job, job_id, now=at) is not None


@pytest.mark.parametrize("state", sorted(FINAL))
async def test_a_deleted_job_leaves_a_tombstone_and_what_was_told_of_it(database: Database, state: JobState) -> None:
    await accept_with_all(database, "a")
    await end_job(database, "a", state, at=5.0)
    before = await database.run(get_job, "a")
    assert await database.run(delete_ended_job, "a", now=10.0) == before
    assert await database.run(get_job, "a") is None
    assert await database.run(count_rows) == Rows(jobs=0, moves=0, keys=0, deliveries=2)  # its webhooks are still sent
    assert await database.run(deletion_sql.get_deleted_video, "a") == DeletedVideo("a", "acme", 10.0)
    assert await database.run(deletion_sql.deleted_videos_with_files, limit=10) == ["a"]


async def test_other_jobs_keep_all(database: Database) -> None:
    await accept_with_all(database, "b")
    await end_job(database, "b", JobState.FAILED, at=5.0)
    before = await database.run(count_rows)
    await accept_with_all(database, "a")
    await end_job(database, "a", JobState.FAILED, at=5.0)
    await database.run(delete_ended_job, "a", now=10.0)
    assert await database.run(count_rows) == before._replace(deliveries=before.deliveries + 2)
    assert await database.run(deletion_sql.get_deleted_video, "b") is None


async def test_its_idempotency_key_is_free_again(database: Database) -> None:
    await add_deleted(database, "a")
    again = Submission("new", "mochi-1", SPEC, "acme", idempotency_key="key of a", fingerprint="another")
    assert not (await accept(database, again, 11.0)).repeated


@pytest.mark.parametrize("running", [False, True])
async def test_a_live_job_stays_as_it_is(database: Database, running: bool) -> None:
    await accept_with_all(database, "a")
    if running:
        await claim(database, Stage.ENCODING, a="t")
    before = await database.run(get_job, "a")
    rows = await database.run(count_rows)
    assert await database.run(delete_ended_job, "a", now=10.0) == before
    assert await database.run(count_rows) == rows
    assert await database.run(deletion_sql.get_deleted_video, "a") is None


async def test_cancelled_and_deleted_in_one_transaction(database: Database) -> None:
    await accept_with_all(database, "a")
    await claim(database, Stage.ENCODING, a="t")

    def cancel_and_delete(connection: Connection, and_then: BaseException | None) -> Job | None:
        cancellation_sql.cancel(connection, "a", now=10.0)
        job = delete_ended_job(connection, "a", now=10.0)
        if and_then is not None:
            raise and_then
        return job

    with pytest.raises(ArithmeticError):
        await database.run(cancel_and_delete, ArithmeticError())
    kept = await database.run(get_job, "a")
    assert kept is not None and kept.state is JobState.ENCODING
    assert await database.run(deletion_sql.get_deleted_video, "a") is None
    job = await database.run(cancel_and_delete, None)
    assert job is not None and job.state is JobState.CANCELLED
    assert await database.run(count_rows) == Rows(jobs=0, moves=0, keys=0, deliveries=2)  # its webhooks are still sent
    assert not await database.run(claims_sql.renew, "a", "t", expires_at=99.0, step=1, progress=0.1, used=Usage())
    assert await database.run(ends_sql.finish_stage, "a", "t", seconds={}, now=11.0, used=Usage(device_s=1.0)) is None


async def test_what_is_not_there_is_none(database: Database) -> None:
    assert await database.run(delete_ended_job, "a", now=10.0) is None
    assert await database.run(deletion_sql.get_deleted_video, "a") is None
    await add_deleted(database, "b")
    assert await database.run(delete_ended_job, "b", now=20.0) is None
    assert await database.run(deletion_sql.get_deleted_video, "b") == DeletedVideo("b", "acme", 10.0)


async def test_files_are_deleted_at_once_and_again_when_no_worker_writes_any_more(database: Database) -> None:
    await add_deleted(database, "late", at=12.0)
    await add_deleted(database, "early", at=11.0)
    assert await database.run(deletion_sql.deleted_videos_with_files, limit=10) == ["early", "late"]
    assert await database.run(deletion_sql.deleted_videos_with_files, limit=1) == ["early"]
    await database.run(deletion_sql.mark_video_files_deleted, ["early", "late"], now=13.0)
    assert await database.run(deletion_sql.deleted_videos_with_files, limit=10) == []

    async def with_late_files(now: float, limit: int = 10) -> list[str]:
        return await database.run(deletion_sql.deleted_videos_with_late_files, now=now, limit=limit)

    assert await with_late_files(11.0 + LATE_WRITES_S - 1) == []
    assert await with_late_files(11.0 + LATE_WRITES_S) == ["early"]
    assert await with_late_files(1e6) == ["early", "late"]
    assert await with_late_files(1e6, 1) == ["early"]
    await database.run(deletion_sql.mark_video_files_deleted, ["early"], now=11.0 + LATE_WRITES_S)
    assert await with_late_files(1e6) == ["late"]


async def test_files_that_were_deleted_late_enough_need_no_second_time(database: Database) -> None:
    await add_deleted(database, "a")
    await database.run(deletion_sql.mark_video_files_deleted, ["a"], now=10.0 + LATE_WRITES_S)
    assert await database.run(deletion_sql.deleted_videos_with_late_files, now=1e6, limit=10) == []


async def test_a_tombstone_is_forgotten_when_its_files_are_gone_for_good(database: Database) -> None:
    await add_deleted(database, "with files", "with late files", "clean")
    await add_deleted(database, "young", at=30.0)
    await database.run(deletion_sql.mark_video_files_deleted, ["with late files"], now=11.0)
    await database.run(deletion_sql.mark_video_files_deleted, ["clean", "young"], now=11.0 + 2 * LATE_WRITES_S)
    assert await database.run(deletion_sql.forget_deleted_videos, before=10.0) == 0
    assert await database.run(deletion_sql.forget_deleted_videos, before=30.0) == 1
    for job_id in ("with files", "with late files", "young"):
        assert await database.run(deletion_sql.get_deleted_video, job_id) is not None
    assert await database.run(deletion_sql.get_deleted_video, "clean") is None


async def test_long_lists_of_deleted_videos_are_taken_whole(database: Database) -> None:
    ids = [f"job{n:04}" for n in range(1100)]

    def fill(connection: Connection) -> None:
        connection.execute(insert(deleted_videos), [{"id": id_, "tenant": "t", "deleted_at": 1.0} for id_ in ids])

    await database.run(fill)
    assert await database.run(deletion_sql.deleted_videos_with_files, limit=2000) == ids
    await database.run(deletion_sql.mark_video_files_deleted, ids, now=1.0 + LATE_WRITES_S)
    assert await database.run(deletion_sql.forget_deleted_videos, before=2.0) == 1100
