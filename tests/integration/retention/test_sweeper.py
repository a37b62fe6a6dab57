"""The sweeper on a real SeaweedFS: what goes, what stays, and what a crash or an outage leaves."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import RegistryUnavailableError, StorageUnavailableError
from deployments.keys import latents_key, video_key
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.config import DAY_S
from serve_app.database.connection import Database
from serve_app.database.jobs import deletion as deletion_sql
from serve_app.database.jobs.deletion import LATE_WRITES_S, delete_ended_job
from serve_app.database.jobs.intake import insert_job
from serve_app.jobs import FINAL, JobState, Submission
from serve_app.local.store.seaweed import LocalStorage
from serve_app.retention.sweeper import BATCH, SweepCounts
from tests.support.logs import serve_log
from tests.support.registry.retention import (
    KEEP_KEYS_S,
    LIVE,
    NOW,
    SPEC,
    AgingStore,
    CrashingDatabase,
    add_jobs,
    all_files,
    files_left,
    job_ids,
    new_id,
    orphan_sweeper,
    put_files,
    sweeper_on,
    video_files,
    work_files,
    write_marker,
)
from tests.support.waiting import PATIENCE_S, running, until

# Work files and expiry


@pytest.mark.parametrize("state", sorted(FINAL))
async def test_work_files_go_soon_after_the_end(database: CrashingDatabase, store: AgingStore, state: JobState) -> None:
    [ended] = await add_jobs(database, state)
    [live] = await add_jobs(database, JobState.SAMPLING)
    await put_files(store, all_files(ended) | all_files(live))
    sweeper = sweeper_on(database, store)
    assert await sweeper.sweep_expired() == SweepCounts(cleared=1, expired=0, keys=0)
    assert await files_left(store) == video_files(ended) | all_files(live)
    assert await sweeper.sweep_expired() == SweepCounts(0, 0, 0)
    assert await job_ids(database) == {ended, live}


@pytest.mark.parametrize(
    ("state", "days", "expires"),
    [
        (JobState.COMPLETED, 29.9, False),
        (JobState.COMPLETED, 30.1, True),
        (JobState.FAILED, 6.9, False),
        (JobState.FAILED, 7.1, True),
        (JobState.CANCELLED, 6.9, False),
        (JobState.CANCELLED, 7.1, True),
    ],
)
async def test_ended_jobs_expire_with_their_files(
    database: CrashingDatabase, store: AgingStore, state: JobState, days: float, expires: bool
) -> None:
    [job_id] = await add_jobs(database, state, days)
    await put_files(store, all_files(job_id))
    assert await sweeper_on(database, store).sweep_expired() == SweepCounts(1, int(expires), 0)
    assert await files_left(store) == (set() if expires else video_files(job_id))
    assert await job_ids(database) == (set() if expires else {job_id})


async def test_null_keeps_for_ever(database: CrashingDatabase, store: AgingStore) -> None:
    kept = [(await add_jobs(database, state, 10_000))[0] for state in sorted(FINAL)]
    await put_files(store, {key for job_id in kept for key in video_files(job_id)})
    sweeper = sweeper_on(database, store, completed_days=None, failed_days=None)
    assert (await sweeper.sweep_expired()).expired == 0
    assert await job_ids(database) == set(kept)
    assert await files_left(store) == {key for job_id in kept for key in video_files(job_id)}


@pytest.mark.parametrize("state", LIVE)
async def test_a_live_job_keeps_everything_however_old(
    database: CrashingDatabase, store: AgingStore, state: JobState
) -> None:
    [job_id] = await add_jobs(database, state, 10_000)
    await put_files(store, all_files(job_id))
    sweeper = sweeper_on(database, store)
    orphans = orphan_sweeper(database, store)
    await write_marker(orphans, store, 10_000)
    assert await sweeper.sweep_expired() == SweepCounts(0, 0, 0)
    assert await orphans.sweep() == 0
    assert await files_left(store) == all_files(job_id)
    assert await job_ids(database) == {job_id}


async def test_more_than_one_batch(database: CrashingDatabase, store: AgingStore) -> None:
    many = await add_jobs(database, JobState.COMPLETED, 31, 2 * BATCH + 1)
    [young] = await add_jobs(database, JobState.COMPLETED, 1)
    await put_files(store, {video_key(job_id) for job_id in many} | {latents_key(many[0]), video_key(young)})
    assert await sweeper_on(database, store).sweep_expired() == SweepCounts(len(many) + 1, len(many), 0)
    assert await job_ids(database) == {young}
    assert await files_left(store) == {video_key(young)}


async def test_idempotency_keys_are_forgotten_when_they_are_too_old(
    database: CrashingDatabase, store: AgingStore
) -> None:
    for name, age_s in (("old", KEEP_KEYS_S + 1), ("young", KEEP_KEYS_S - 1)):
        submission = Submission(new_id(), "m", SPEC, idempotency_key=name)
        await database.run(insert_job, submission, now=NOW - age_s, keep_keys_s=KEEP_KEYS_S)
    sweeper = sweeper_on(database, store)
    assert await sweeper.sweep_expired() == SweepCounts(0, 0, keys=1)
    assert await sweeper.sweep_expired() == SweepCounts(0, 0, 0)
    assert len(await job_ids(database)) == 2


async def test_what_was_done_is_counted_in_the_log(
    database: CrashingDatabase, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    await add_jobs(database, JobState.FAILED, 8, 3)
    sweeper = sweeper_on(database, store)
    with serve_log(caplog):
        await sweeper.sweep_expired()
        await sweeper.sweep_expired()
    [line] = caplog.messages
    assert "work files of 3 ended jobs" in line and "deleted 3 expired jobs" in line


# Crashes and outages


@pytest.mark.parametrize("away", [deletion_sql.delete_expired_jobs, deletion_sql.mark_work_files_deleted])
async def test_a_crash_between_files_and_rows_leaves_the_rows_for_the_next_sweep(
    database: CrashingDatabase, store: AgingStore, away: Callable[..., Any]
) -> None:
    [job_id] = await add_jobs(database, JobState.COMPLETED, 31)
    [live] = await add_jobs(database, JobState.DECODING)
    await put_files(store, all_files(job_id) | all_files(live))
    sweeper = sweeper_on(database, store)
    database.away = frozenset({away})
    with pytest.raises(RegistryUnavailableError):
        await sweeper.sweep_expired()
    assert await job_ids(database) == {job_id, live}
    assert not await files_left(store) & work_files(job_id)
    database.away = frozenset()
    assert (await sweeper.sweep_expired()).expired == 1
    assert await job_ids(database) == {live}
    assert await files_left(store) == all_files(live)


@pytest.mark.parametrize("deletes", [0, 1, 2])
async def test_rows_stay_when_the_store_goes_away_half_way(
    database: CrashingDatabase, store: AgingStore, deletes: int
) -> None:
    expired = await add_jobs(database, JobState.COMPLETED, 31, 3)
    await put_files(store, {key for job_id in expired for key in all_files(job_id)})
    store.deletes_left = deletes
    sweeper = sweeper_on(database, store)
    with pytest.raises(StorageUnavailableError):
        await sweeper.sweep_expired()
    assert await job_ids(database) == set(expired)
    store.deletes_left = 10
    assert (await sweeper.sweep_expired()).expired == 3
    assert await job_ids(database) == set() == await files_left(store)


async def test_a_store_that_is_away_and_back(
    database: CrashingDatabase, storage_settings: StorageSettings, local_port: int, tmp_path: Path
) -> None:
    [job_id] = await add_jobs(database, JobState.FAILED, 8)
    async with AsyncExitStack() as stack:
        storage = LocalStorage(StorageSettings(local_port=local_port), tmp_path / "objects")
        stack.push_async_callback(storage.stop)
        store = ObjectStore(await storage.ready())
        await put_files(store, all_files(job_id))
        await storage.stop()
        sweeper = sweeper_on(database, store)
        for sweep in (sweeper.sweep_expired, orphan_sweeper(database, store).sweep):
            with pytest.raises(StorageUnavailableError):
                await sweep()
        assert await job_ids(database) == {job_id}
        again = LocalStorage(StorageSettings(local_port=local_port), tmp_path / "objects")
        stack.push_async_callback(again.stop)
        await again.ready()
        assert await files_left(store) >= all_files(job_id)
        assert (await sweeper.sweep_expired()).expired == 1
        assert not await files_left(store) & all_files(job_id)
        store.close()


async def test_the_loop_outlives_outages_of_both_and_defects(
    database: CrashingDatabase, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    [expired] = await add_jobs(database, JobState.FAILED, 8)
    orphan = new_id()
    await put_files(store, all_files(expired) | all_files(orphan))
    sweeper = sweeper_on(database, store, sweep_every_s=0.01, orphans_every_s=0.01)
    await write_marker(orphan_sweeper(database, store), store, 2)
    database.away = frozenset({deletion_sql.jobs_with_work_files})
    store.deletes_left = 0
    with serve_log(caplog):
        async with running(sweeper.run()):
            await until(lambda: "job database" in caplog.text and "object store is away" in caplog.text)
            assert {record.exc_info for record in caplog.records} == {None}
            database.away = frozenset()
            database.broken = frozenset({deletion_sql.job_states})
            await until(lambda: "ArithmeticError: a defect" in caplog.text)
            database.broken = frozenset()
            store.deletes_left = 10**9
            await until_empty(store)
            async with asyncio.timeout(PATIENCE_S):  # a job goes after its files
                while await job_ids(database):
                    await asyncio.sleep(0.01)


async def test_two_registries_sweep_at_once(database: CrashingDatabase, database_url: str, store: AgingStore) -> None:
    expired = await add_jobs(database, JobState.COMPLETED, 31, BATCH + 20)
    orphans = [new_id() for _ in range(50)]
    [live] = await add_jobs(database, JobState.QUEUED)
    await put_files(store, {video_key(job_id) for job_id in [*expired, *orphans]} | all_files(live))
    second = Database(database_url)
    sweepers = [sweeper_on(each, store) for each in (database, second)]
    orphan_sweepers = [orphan_sweeper(each, store) for each in (database, second)]
    await write_marker(orphan_sweepers[0], store, 2)
    await asyncio.gather(*(s.sweep_expired() for s in sweepers), *(s.sweep() for s in orphan_sweepers))
    second.close()
    assert await job_ids(database) == {live}
    assert await files_left(store) == all_files(live)


# Videos that were deleted


class Clock:
    """Unix seconds, put forward by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


async def add_deleted_videos(database: Database, count: int = 1) -> list[str]:
    job_ids = await add_jobs(database, JobState.COMPLETED, count=count)
    for job_id in job_ids:
        assert await database.run(delete_ended_job, job_id, now=NOW) is not None
    return job_ids


async def test_all_files_of_a_deleted_video_go(database: CrashingDatabase, store: AgingStore) -> None:
    [gone] = await add_deleted_videos(database)
    [kept] = await add_jobs(database, JobState.COMPLETED)
    await put_files(store, all_files(gone) | all_files(kept))
    sweeper = sweeper_on(database, store)
    assert await sweeper.sweep_deleted() == 1
    assert await files_left(store) == all_files(kept)
    assert await sweeper.sweep_deleted() == 0
    assert await database.run(deletion_sql.get_deleted_video, gone) is not None


async def test_more_deleted_videos_than_one_batch(database: CrashingDatabase, store: AgingStore) -> None:
    many = await add_deleted_videos(database, 2 * BATCH + 1)
    await put_files(store, {video_key(job_id) for job_id in many})
    assert await sweeper_on(database, store).sweep_deleted() == len(many)
    assert await files_left(store) == set()


@pytest.mark.parametrize("deletes", [0, 1])
async def test_a_store_that_goes_away_leaves_deleted_videos_for_the_next_sweep(
    database: CrashingDatabase, store: AgingStore, deletes: int
) -> None:
    [gone] = await add_deleted_videos(database)
    await put_files(store, all_files(gone))
    store.deletes_left = deletes
    sweeper = sweeper_on(database, store)
    with pytest.raises(StorageUnavailableError):
        await sweeper.sweep_deleted()
    store.deletes_left = 10
    assert await sweeper.sweep_deleted() == 1
    assert await files_left(store) == set()


async def test_a_crash_before_the_files_are_marked_gone_loses_no_track(
    database: CrashingDatabase, store: AgingStore
) -> None:
    [gone] = await add_deleted_videos(database)
    await put_files(store, all_files(gone))
    database.away = frozenset({deletion_sql.mark_video_files_deleted})
    with pytest.raises(RegistryUnavailableError):
        await sweeper_on(database, store).sweep_deleted()
    await put_files(store, all_files(gone))
    database.away = frozenset()
    assert await sweeper_on(database, store).sweep_deleted() == 1
    assert await files_left(store) == set()


async def test_what_a_worker_writes_after_the_delete_goes_without_waiting_for_the_orphans(
    database: CrashingDatabase, store: AgingStore
) -> None:
    [gone] = await add_deleted_videos(database)
    [live] = await add_jobs(database, JobState.DECODING)
    clock = Clock()
    sweeper = sweeper_on(database, store, clock)
    await sweeper.sweep_deleted()
    await put_files(store, all_files(gone) | all_files(live))
    clock.now += LATE_WRITES_S - 1
    await sweeper.sweep_deleted()
    assert await files_left(store) == all_files(gone) | all_files(live)
    clock.now += 1
    assert await sweeper.sweep_deleted() == 0
    assert await files_left(store) == all_files(live)
    await put_files(store, video_files(gone))
    orphans = orphan_sweeper(database, store)
    await write_marker(orphans, store, 1.1)
    assert await orphans.sweep() == len(video_files(gone))
    assert await files_left(store) == all_files(live)


async def test_a_tombstone_is_forgotten_after_a_day_with_its_files_gone(
    database: CrashingDatabase, store: AgingStore
) -> None:
    [gone] = await add_deleted_videos(database)
    await put_files(store, all_files(gone))
    clock = Clock()
    sweeper = sweeper_on(database, store, clock)
    await sweeper.sweep_deleted()
    clock.now += DAY_S
    await sweeper.sweep_deleted()
    assert await database.run(deletion_sql.get_deleted_video, gone) is not None
    clock.now += 1
    await sweeper.sweep_deleted()
    assert await database.run(deletion_sql.get_deleted_video, gone) is None


async def test_a_tombstone_outlives_a_day_of_a_store_that_is_away(
    database: CrashingDatabase, store: AgingStore
) -> None:
    [gone] = await add_deleted_videos(database)
    await put_files(store, all_files(gone))
    clock = Clock()
    clock.now += 2 * DAY_S
    store.deletes_left = 0
    sweeper = sweeper_on(database, store, clock)
    with pytest.raises(StorageUnavailableError):
        await sweeper.sweep_deleted()
    assert await database.run(deletion_sql.get_deleted_video, gone) is not None
    store.deletes_left = 10
    assert await sweeper.sweep_deleted() == 1
    assert await files_left(store) == set()
    assert await database.run(deletion_sql.get_deleted_video, gone) is None


async def test_a_woken_sweeper_deletes_at_once(database: CrashingDatabase, store: AgingStore) -> None:
    [first] = await add_deleted_videos(database)
    await put_files(store, all_files(first))
    sweeper = sweeper_on(database, store, sweep_every_s=1e6)
    async with running(sweeper.run()):
        await until_empty(store)
        for _ in range(2):
            [job_id] = await add_jobs(database, JobState.COMPLETED)
            await put_files(store, video_files(job_id))
            await database.run(delete_ended_job, job_id, now=NOW)
            sweeper.wake()
            await until_empty(store)


async def test_nobody_wakes_a_sweeper_whose_store_is_away(
    database: CrashingDatabase, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    [gone] = await add_deleted_videos(database)
    await put_files(store, all_files(gone))
    store.deletes_left = 0
    sweeper = sweeper_on(database, store, sweep_every_s=1e6)
    with serve_log(caplog):
        async with running(sweeper.run()):
            await until(lambda: "object store is away" in caplog.text)
            for _ in range(20):
                sweeper.wake()
                await database.run(deletion_sql.get_deleted_video, gone)
    assert caplog.text.count("object store is away") == 1


async def test_two_registries_delete_the_files_of_the_same_videos(
    database: CrashingDatabase, database_url: str, store: AgingStore
) -> None:
    many = await add_deleted_videos(database, BATCH + 20)
    await put_files(store, {video_key(job_id) for job_id in many})
    second = Database(database_url)
    await asyncio.gather(*(sweeper_on(each, store).sweep_deleted() for each in (database, second)))
    second.close()
    assert await files_left(store) == set()
    assert await database.run(deletion_sql.deleted_videos_with_files, limit=10) == []


async def until_empty(store: ObjectStore) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await files_left(store):
            await asyncio.sleep(0.01)
