"""The sweeper of orphans on a real SeaweedFS: which files belong to no job, and whose bucket it is."""

import logging
from datetime import timedelta

import pytest

from deployments.errors import StorageUnavailableError
from deployments.keys import checkpoint_key, latents_key, video_key
from deployments.mochi.preview import preview_key
from deployments.storage.object_store import PAGE
from serve_app.database import meta as meta_sql
from serve_app.database.connection import Database
from serve_app.jobs import JobState
from serve_app.retention.orphans import MARKER_PREFIX
from serve_app.retention.sweeper import SweepCounts
from tests.support.logs import serve_log
from tests.support.registry.retention import (
    LIVE,
    AgingStore,
    CrashingDatabase,
    add_jobs,
    all_files,
    files_left,
    new_id,
    orphan_sweeper,
    put_files,
    sweeper_on,
    video_files,
    write_marker,
)


@pytest.mark.parametrize("state", [None, *JobState])
async def test_orphans_are_what_no_job_needs(
    database: CrashingDatabase, store: AgingStore, state: JobState | None
) -> None:
    job_id = new_id() if state is None else (await add_jobs(database, state))[0]
    sweeper = orphan_sweeper(database, store)
    await put_files(store, all_files(job_id))
    await write_marker(sweeper, store, 1.1)
    count = await sweeper.sweep()
    kept: set[str] = set()
    if state in LIVE:
        kept = all_files(job_id)
    elif state is JobState.COMPLETED:
        kept = video_files(job_id)
    assert await files_left(store) == kept
    assert count == len(all_files(job_id)) - len(kept)


async def test_what_a_zombie_writes_after_the_end_is_found(database: CrashingDatabase, store: AgingStore) -> None:
    [job_id] = await add_jobs(database, JobState.COMPLETED)
    sweeper = orphan_sweeper(database, store)
    expired = sweeper_on(database, store)
    await expired.sweep_expired()
    await put_files(store, {checkpoint_key(job_id, 6), video_key(job_id)})
    await write_marker(sweeper, store, 1.1)
    assert await expired.sweep_expired() == SweepCounts(0, 0, 0)
    assert await sweeper.sweep() == 1
    assert await files_left(store) == {video_key(job_id)}


async def test_young_files_are_no_orphans_by_the_clock_of_the_store(
    database: CrashingDatabase, store: AgingStore
) -> None:
    young, old = new_id(), new_id()
    await put_files(store, all_files(young) | all_files(old))
    store.later = dict.fromkeys(all_files(young), timedelta(days=1))
    sweeper = orphan_sweeper(database, store)
    await write_marker(sweeper, store, 0.9)
    assert await sweeper.sweep() == 0
    store.ahead = timedelta(days=1.1)
    assert await sweeper.sweep() == len(all_files(old))
    assert await files_left(store) == all_files(young)


async def test_what_is_not_ours_stays(database: CrashingDatabase, store: AgingStore) -> None:
    foreign = {
        "ready",
        "holiday.mp4",
        "jobs/readme.txt",
        "jobs/mine/latents.safetensors",
        f"jobs/{new_id()}/notes.txt",
        f"jobs/{new_id()}/deep/latents.safetensors",
        "videos/holiday.mp4",
        f"videos/{new_id()}.mov",
        f"videos-of-us/{new_id()}.mp4",
        preview_key("0123abcd"),
        f"models/{new_id()}/latents.safetensors",
        "mochi-serve/other/thing",
    }
    await put_files(store, foreign)
    sweeper = orphan_sweeper(database, store)
    await write_marker(sweeper, store, 1000)
    await sweeper_on(database, store).sweep_expired()
    assert await sweeper.sweep() == 0
    assert await files_left(store) == foreign


@pytest.mark.slow
async def test_thousands_of_orphans_are_paged(
    database: CrashingDatabase, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    orphans = [new_id() for _ in range(2 * PAGE + 300)]
    [completed] = await add_jobs(database, JobState.COMPLETED)
    [live] = await add_jobs(database, JobState.SAMPLING)
    written = {latents_key(job_id) for job_id in orphans} | {video_key(job_id) for job_id in orphans[:PAGE]}
    await put_files(store, written | all_files(live) | video_files(completed))
    sweeper = orphan_sweeper(database, store)
    await write_marker(sweeper, store, 2)
    with serve_log(caplog):
        assert await sweeper.sweep() == len(written)
    assert caplog.messages == [f"retention: deleted {len(written)} files that belonged to no job"]
    assert await files_left(store) == all_files(live) | video_files(completed)


async def test_an_orphan_sweep_that_broke_off_is_done_by_the_next(
    database: CrashingDatabase, store: AgingStore
) -> None:
    orphan = new_id()
    await put_files(store, all_files(orphan))
    sweeper = orphan_sweeper(database, store)
    await write_marker(sweeper, store, 2)
    store.deletes_left = 1
    with pytest.raises(StorageUnavailableError):
        await sweeper.sweep()
    assert await files_left(store) == video_files(orphan)
    store.deletes_left = 10
    assert await sweeper.sweep() == len(video_files(orphan))


# A bucket and its installations


async def test_two_installations_in_one_bucket_lose_nothing_to_each_other(
    database: CrashingDatabase, other_database: Database, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    [mine] = await add_jobs(database, JobState.COMPLETED)
    [theirs] = await add_jobs(other_database, JobState.COMPLETED)
    await put_files(store, video_files(mine) | all_files(theirs))
    first = orphan_sweeper(database, store)
    second = orphan_sweeper(other_database, store)
    await first.sweep()
    await write_marker(second, store, 100)
    caplog.clear()
    with serve_log(caplog):
        assert await first.sweep() == 0
        assert await second.sweep() == 0
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    other_id = await other_database.run(meta_sql.installation_id)
    assert f"{MARKER_PREFIX}{other_id}" in caplog.messages[0]
    assert "bucket of its own" in caplog.messages[0]
    assert await files_left(store) == video_files(mine) | all_files(theirs)


async def test_both_still_delete_what_is_their_own(
    database: CrashingDatabase, other_database: Database, store: AgingStore
) -> None:
    [mine] = await add_jobs(database, JobState.COMPLETED, 31)
    [theirs] = await add_jobs(other_database, JobState.COMPLETED)
    await put_files(store, all_files(mine) | all_files(theirs))
    await orphan_sweeper(other_database, store).sweep()
    assert await sweeper_on(database, store).sweep_expired() == SweepCounts(1, 1, 0)
    assert await files_left(store) == all_files(theirs)


async def test_the_marker_of_one_that_is_gone_can_be_deleted(
    database: CrashingDatabase, other_database: Database, store: AgingStore
) -> None:
    [theirs] = await add_jobs(other_database, JobState.COMPLETED)
    await put_files(store, video_files(theirs))
    sweeper = orphan_sweeper(database, store)
    await orphan_sweeper(other_database, store).sweep()
    await write_marker(sweeper, store, 2)
    assert await sweeper.sweep() == 0
    await store.delete(MARKER_PREFIX + await other_database.run(meta_sql.installation_id))
    assert await sweeper.sweep() == len(video_files(theirs))


async def test_a_bucket_is_swept_only_orphan_days_after_the_marker_was_written(
    database: CrashingDatabase, store: AgingStore
) -> None:
    """Whoever else has files there has that long to write a marker too."""
    orphan = new_id()
    await put_files(store, all_files(orphan))
    store.later = dict.fromkeys(all_files(orphan), timedelta(days=-100))
    sweeper = orphan_sweeper(database, store, orphan_days=3)
    own = MARKER_PREFIX + await database.run(meta_sql.installation_id)
    assert await sweeper.sweep() == 0
    store.ahead = timedelta(days=2.9)
    assert await sweeper.sweep() == 0
    assert await store.list_keys(MARKER_PREFIX) == [own]
    store.ahead = timedelta(days=3.1)
    assert await sweeper.sweep() == len(all_files(orphan))


async def test_an_installation_knows_its_marker_after_a_restart(
    database: CrashingDatabase, database_url: str, store: AgingStore
) -> None:
    orphan = new_id()
    await put_files(store, video_files(orphan))
    await write_marker(orphan_sweeper(database, store), store, 2)
    reopened = Database(database_url)
    assert await orphan_sweeper(reopened, store).sweep() == len(video_files(orphan))
    reopened.close()
