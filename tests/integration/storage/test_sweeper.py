"""The sweeper on a real SeaweedFS and both databases: what goes, what stays, and what a crash or an outage leaves."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Concatenate
from uuid import uuid4

import pytest
import pytest_asyncio
from sqlalchemy import Connection, insert, select

from deployments.errors import RegistryUnavailableError, StorageUnavailableError
from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key, video_key
from deployments.messages import Stage, VideoSpec
from deployments.mochi.preview import preview_key
from deployments.settings import StorageSettings
from deployments.storage.object_store import PAGE, ListedObject, ObjectInfo, ObjectStore
from serve_app.config import RetentionSettings
from serve_app.database import meta as meta_sql
from serve_app.database import retention as retention_sql
from serve_app.database.connection import Database, P, T
from serve_app.database.intake import insert_job
from serve_app.database.retention import LATE_WRITES_S, delete_ended_job
from serve_app.database.schema import jobs
from serve_app.jobs import FINAL, JobState, Submission
from serve_app.local.seaweed import LocalStorage
from serve_app.retention.sweeper import BATCH, MARKER_PREFIX, Store, Sweeper, Swept

DAY = 86_400.0
NOW = 1_800_000_000.0
KEEP_KEYS_S = DAY
SPEC = VideoSpec("a", "", 64, 64, 7, 8, 4, 1.0, 0)
LIVE = [state for state in JobState if state not in FINAL]


class AgingStore(ObjectStore):
    """The real store whose clock can be put forward, so that what was written before is that much older.

    ahead: of the store's clock. later: how much later than it was a key is listed as written. deletes_left: after so
    many requests to delete the store is away.
    """

    ahead = timedelta()
    later: dict[str, timedelta] = {}
    deletes_left = 10**9

    async def stat(self, key: str) -> ObjectInfo | None:
        info = await super().stat(key)
        if info is None:
            return None
        assert info.answered_at is not None
        return ObjectInfo(info.size, info.etag, info.modified, info.content_type, info.answered_at + self.ahead)

    async def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]:
        async for page in super().list_pages(prefix):
            yield [self._aged(entry) for entry in page]

    def _aged(self, entry: ListedObject) -> ListedObject:
        assert entry.modified is not None
        return ListedObject(entry.key, entry.modified + self.later.get(entry.key, timedelta()))

    async def delete_many(self, keys: Sequence[str]) -> None:
        if self.deletes_left <= 0:
            raise StorageUnavailableError("the object store is away")
        self.deletes_left -= 1
        await super().delete_many(keys)


class CrashingDatabase(Database):
    """The real database, away for the functions in `away`, and with a defect in those in `broken`."""

    away: frozenset[Callable[..., Any]] = frozenset()
    broken: frozenset[Callable[..., Any]] = frozenset()

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if function in self.away:
            raise RegistryUnavailableError("the job database does not work")
        if function in self.broken:
            raise ArithmeticError("a defect")
        return await super().run(function, *args, **kwargs)


@pytest_asyncio.fixture
async def store(storage_settings: StorageSettings) -> AsyncIterator[AgingStore]:
    """A bucket of these tests, empty at the begin and the end of each."""
    store = AgingStore(storage_settings.model_copy(update={"bucket": "retention-tests"}))
    await store.ensure_bucket()
    yield store
    await ObjectStore.delete_many(store, await store.list_keys(""))


@pytest.fixture
def database(database_url: str) -> Iterator[CrashingDatabase]:
    database = CrashingDatabase(database_url)
    yield database
    database.close()


@pytest.fixture
def other_database(tmp_path: Path) -> Iterator[Database]:
    """Of another installation."""
    database = Database(f"sqlite:///{tmp_path / 'other.db'}")
    yield database
    database.close()


def _sweeper(database: Database, store: Store, **settings: Any) -> Sweeper:
    return Sweeper(database, store, RetentionSettings(**settings), KEEP_KEYS_S, lambda: NOW)


def _id() -> str:
    return f"video_{uuid4().hex}"


def _row(job_id: str, state: JobState, ended_days_ago: float) -> dict[str, Any]:
    ended = NOW - ended_days_ago * DAY
    return {
        "id": job_id,
        "model": "m",
        "spec": asdict(SPEC),
        "state": state,
        "stage": Stage.DECODING,
        "attempt": 1,
        "step": 0,
        "progress": 0.0,
        "created_at": ended - 60,
        "completed_at": ended if state in FINAL else None,
        "available_at": ended - 60,
        "seconds": {},
    }


async def _add(database: Database, state: JobState, ended_days_ago: float = 0.0, count: int = 1) -> list[str]:
    job_ids = [_id() for _ in range(count)]

    def write(connection: Connection) -> None:
        connection.execute(insert(jobs), [_row(job_id, state, ended_days_ago) for job_id in job_ids])

    await database.run(write)
    return job_ids


async def _ids(database: Database) -> set[str]:
    def read(connection: Connection) -> set[str]:
        return set(connection.execute(select(jobs.c.id)).scalars())

    return await database.run(read)


def _work(job_id: str) -> set[str]:
    return {prompt_embeds_key(job_id), checkpoint_key(job_id, 2), checkpoint_key(job_id, 4), latents_key(job_id)}


def _video(job_id: str) -> set[str]:
    return {video_key(job_id), video_key(job_id, "thumbnail"), video_key(job_id, "spritesheet")}


def _files(job_id: str) -> set[str]:
    return _work(job_id) | _video(job_id)


async def _put(store: ObjectStore, keys: set[str]) -> None:
    waiting = sorted(keys)
    for first in range(0, len(waiting), 50):
        await asyncio.gather(*(store.put(key, b"x", "text/plain") for key in waiting[first : first + 50]))


async def _left(store: ObjectStore) -> set[str]:
    """All keys but the markers."""
    return {key for key in await store.list_keys("") if not key.startswith(MARKER_PREFIX)}


@contextmanager
def _logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Catch what the sweeper logs, wherever else Ray sends it."""
    logger = logging.getLogger("ray.serve")
    before = logger.level, logger.propagate
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)
        logger.level, logger.propagate = before


async def _announced(sweeper: Sweeper, store: AgingStore, days: float) -> None:
    """The installation's marker is in the bucket, and days have passed."""
    await sweeper.sweep_orphans()
    store.ahead = timedelta(days=days)


# Work files and expiry


@pytest.mark.parametrize("state", sorted(FINAL))
async def test_work_files_go_soon_after_the_end(database: CrashingDatabase, store: AgingStore, state: JobState) -> None:
    [ended] = await _add(database, state)
    [live] = await _add(database, JobState.SAMPLING)
    await _put(store, _files(ended) | _files(live))
    sweeper = _sweeper(database, store)
    assert await sweeper.sweep_expired() == Swept(cleared=1, expired=0, keys=0)
    assert await _left(store) == _video(ended) | _files(live)
    assert await sweeper.sweep_expired() == Swept(0, 0, 0)
    assert await _ids(database) == {ended, live}


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
    [job_id] = await _add(database, state, days)
    await _put(store, _files(job_id))
    assert await _sweeper(database, store).sweep_expired() == Swept(1, int(expires), 0)
    assert await _left(store) == (set() if expires else _video(job_id))
    assert await _ids(database) == (set() if expires else {job_id})


async def test_null_keeps_for_ever(database: CrashingDatabase, store: AgingStore) -> None:
    kept = [(await _add(database, state, 10_000))[0] for state in sorted(FINAL)]
    await _put(store, {key for job_id in kept for key in _video(job_id)})
    sweeper = _sweeper(database, store, completed_days=None, failed_days=None)
    assert (await sweeper.sweep_expired()).expired == 0
    assert await _ids(database) == set(kept)
    assert await _left(store) == {key for job_id in kept for key in _video(job_id)}


@pytest.mark.parametrize("state", LIVE)
async def test_a_live_job_keeps_everything_however_old(
    database: CrashingDatabase, store: AgingStore, state: JobState
) -> None:
    [job_id] = await _add(database, state, 10_000)
    await _put(store, _files(job_id))
    sweeper = _sweeper(database, store)
    await _announced(sweeper, store, 10_000)
    assert await sweeper.sweep_expired() == Swept(0, 0, 0)
    assert await sweeper.sweep_orphans() == 0
    assert await _left(store) == _files(job_id)
    assert await _ids(database) == {job_id}


async def test_more_than_one_batch(database: CrashingDatabase, store: AgingStore) -> None:
    many = await _add(database, JobState.COMPLETED, 31, 2 * BATCH + 1)
    [young] = await _add(database, JobState.COMPLETED, 1)
    await _put(store, {video_key(job_id) for job_id in many} | {latents_key(many[0]), video_key(young)})
    assert await _sweeper(database, store).sweep_expired() == Swept(len(many) + 1, len(many), 0)
    assert await _ids(database) == {young}
    assert await _left(store) == {video_key(young)}


async def test_idempotency_keys_are_forgotten_when_they_are_too_old(
    database: CrashingDatabase, store: AgingStore
) -> None:
    for name, age_s in (("old", KEEP_KEYS_S + 1), ("young", KEEP_KEYS_S - 1)):
        submission = Submission(_id(), "m", SPEC, idempotency_key=name)
        await database.run(insert_job, submission, now=NOW - age_s, keep_keys_s=KEEP_KEYS_S)
    sweeper = _sweeper(database, store)
    assert await sweeper.sweep_expired() == Swept(0, 0, keys=1)
    assert await sweeper.sweep_expired() == Swept(0, 0, 0)
    assert len(await _ids(database)) == 2


async def test_what_was_done_is_counted_in_the_log(
    database: CrashingDatabase, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    await _add(database, JobState.FAILED, 8, 3)
    sweeper = _sweeper(database, store)
    with _logged(caplog):
        await sweeper.sweep_expired()
        await sweeper.sweep_expired()
    [line] = caplog.messages
    assert "work files of 3 ended jobs" in line and "deleted 3 expired jobs" in line


# Crashes and outages


@pytest.mark.parametrize("away", [retention_sql.delete_expired_jobs, retention_sql.mark_work_files_deleted])
async def test_a_crash_between_files_and_rows_leaves_the_rows_for_the_next_sweep(
    database: CrashingDatabase, store: AgingStore, away: Callable[..., Any]
) -> None:
    [job_id] = await _add(database, JobState.COMPLETED, 31)
    [live] = await _add(database, JobState.DECODING)
    await _put(store, _files(job_id) | _files(live))
    sweeper = _sweeper(database, store)
    database.away = frozenset({away})
    with pytest.raises(RegistryUnavailableError):
        await sweeper.sweep_expired()
    assert await _ids(database) == {job_id, live}
    assert not await _left(store) & _work(job_id)
    database.away = frozenset()
    assert (await sweeper.sweep_expired()).expired == 1
    assert await _ids(database) == {live}
    assert await _left(store) == _files(live)


@pytest.mark.parametrize("deletes", [0, 1, 2])
async def test_rows_stay_when_the_store_goes_away_half_way(
    database: CrashingDatabase, store: AgingStore, deletes: int
) -> None:
    expired = await _add(database, JobState.COMPLETED, 31, 3)
    await _put(store, {key for job_id in expired for key in _files(job_id)})
    store.deletes_left = deletes
    sweeper = _sweeper(database, store)
    with pytest.raises(StorageUnavailableError):
        await sweeper.sweep_expired()
    assert await _ids(database) == set(expired)
    store.deletes_left = 10
    assert (await sweeper.sweep_expired()).expired == 3
    assert await _ids(database) == set() == await _left(store)


async def test_a_store_that_is_away_and_back(
    database: CrashingDatabase, storage_settings: StorageSettings, local_port: int, tmp_path: Path
) -> None:
    [job_id] = await _add(database, JobState.FAILED, 8)
    async with AsyncExitStack() as stack:
        storage = LocalStorage(StorageSettings(local_port=local_port), tmp_path / "objects")
        stack.push_async_callback(storage.stop)
        store = ObjectStore(await storage.ready())
        await _put(store, _files(job_id))
        await storage.stop()
        sweeper = _sweeper(database, store)
        for sweep in (sweeper.sweep_expired, sweeper.sweep_orphans):
            with pytest.raises(StorageUnavailableError):
                await sweep()
        assert await _ids(database) == {job_id}
        again = LocalStorage(StorageSettings(local_port=local_port), tmp_path / "objects")
        stack.push_async_callback(again.stop)
        await again.ready()
        assert await _left(store) >= _files(job_id)
        assert (await sweeper.sweep_expired()).expired == 1
        assert not await _left(store) & _files(job_id)
        store.close()


async def test_the_loop_outlives_outages_of_both_and_defects(
    database: CrashingDatabase, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    [expired] = await _add(database, JobState.FAILED, 8)
    orphan = _id()
    await _put(store, _files(expired) | _files(orphan))
    sweeper = _sweeper(database, store, sweep_every_s=0.01, orphans_every_s=0.01)
    await _announced(sweeper, store, 2)
    database.away, store.deletes_left = frozenset({retention_sql.jobs_with_work_files}), 0
    with _logged(caplog):
        running = asyncio.create_task(sweeper.run())
        try:
            await _until(lambda: "job database" in caplog.text and "object store is away" in caplog.text)
            assert {record.exc_info for record in caplog.records} == {None}
            database.away, database.broken = frozenset(), frozenset({retention_sql.job_states})
            await _until(lambda: "ArithmeticError: a defect" in caplog.text)
            database.broken = frozenset()
            store.deletes_left = 10**9
            await _gone(store)
            async with asyncio.timeout(30):  # a job goes after its files
                while await _ids(database):
                    await asyncio.sleep(0.01)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def test_two_registries_sweep_at_once(database: CrashingDatabase, database_url: str, store: AgingStore) -> None:
    expired = await _add(database, JobState.COMPLETED, 31, BATCH + 20)
    orphans = [_id() for _ in range(50)]
    [live] = await _add(database, JobState.QUEUED)
    await _put(store, {video_key(job_id) for job_id in [*expired, *orphans]} | _files(live))
    second = Database(database_url)
    sweepers = [_sweeper(database, store), _sweeper(second, store)]
    await _announced(sweepers[0], store, 2)
    await asyncio.gather(*(s.sweep_expired() for s in sweepers), *(s.sweep_orphans() for s in sweepers))
    second.close()
    assert await _ids(database) == {live}
    assert await _left(store) == _files(live)


# Videos that were deleted


class Clock:
    """Unix seconds, put forward by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


async def _deleted(database: Database, count: int = 1) -> list[str]:
    job_ids = await _add(database, JobState.COMPLETED, count=count)
    for job_id in job_ids:
        assert await database.run(delete_ended_job, job_id, now=NOW) is not None
    return job_ids


@asynccontextmanager
async def _running(sweeper: Sweeper) -> AsyncIterator[None]:
    running = asyncio.create_task(sweeper.run())
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def _deleting_sweeper(database: Database, store: Store, clock: Clock, **settings: Any) -> Sweeper:
    return Sweeper(database, store, RetentionSettings(**settings), KEEP_KEYS_S, clock)


async def test_all_files_of_a_deleted_video_go(database: CrashingDatabase, store: AgingStore) -> None:
    [gone] = await _deleted(database)
    [kept] = await _add(database, JobState.COMPLETED)
    await _put(store, _files(gone) | _files(kept))
    sweeper = _sweeper(database, store)
    assert await sweeper.sweep_deleted() == 1
    assert await _left(store) == _files(kept)
    assert await sweeper.sweep_deleted() == 0
    assert await database.run(retention_sql.get_deleted_video, gone) is not None


async def test_more_deleted_videos_than_one_batch(database: CrashingDatabase, store: AgingStore) -> None:
    many = await _deleted(database, 2 * BATCH + 1)
    await _put(store, {video_key(job_id) for job_id in many})
    assert await _sweeper(database, store).sweep_deleted() == len(many)
    assert await _left(store) == set()


@pytest.mark.parametrize("deletes", [0, 1])
async def test_a_store_that_goes_away_leaves_deleted_videos_for_the_next_sweep(
    database: CrashingDatabase, store: AgingStore, deletes: int
) -> None:
    [gone] = await _deleted(database)
    await _put(store, _files(gone))
    store.deletes_left = deletes
    sweeper = _sweeper(database, store)
    with pytest.raises(StorageUnavailableError):
        await sweeper.sweep_deleted()
    store.deletes_left = 10
    assert await sweeper.sweep_deleted() == 1
    assert await _left(store) == set()


async def test_a_crash_before_the_files_are_marked_gone_loses_no_track(
    database: CrashingDatabase, store: AgingStore
) -> None:
    [gone] = await _deleted(database)
    await _put(store, _files(gone))
    database.away = frozenset({retention_sql.mark_video_files_deleted})
    with pytest.raises(RegistryUnavailableError):
        await _sweeper(database, store).sweep_deleted()
    await _put(store, _files(gone))
    database.away = frozenset()
    assert await _sweeper(database, store).sweep_deleted() == 1
    assert await _left(store) == set()


async def test_what_a_worker_writes_after_the_delete_goes_without_waiting_for_the_orphans(
    database: CrashingDatabase, store: AgingStore
) -> None:
    [gone] = await _deleted(database)
    [live] = await _add(database, JobState.DECODING)
    clock = Clock()
    sweeper = _deleting_sweeper(database, store, clock)
    await sweeper.sweep_deleted()
    await _put(store, _files(gone) | _files(live))
    clock.now += LATE_WRITES_S - 1
    await sweeper.sweep_deleted()
    assert await _left(store) == _files(gone) | _files(live)
    clock.now += 1
    assert await sweeper.sweep_deleted() == 0
    assert await _left(store) == _files(live)
    await _put(store, _video(gone))
    await _announced(sweeper, store, 1.1)
    assert await sweeper.sweep_orphans() == len(_video(gone))
    assert await _left(store) == _files(live)


async def test_a_tombstone_is_forgotten_after_a_day_with_its_files_gone(
    database: CrashingDatabase, store: AgingStore
) -> None:
    [gone] = await _deleted(database)
    await _put(store, _files(gone))
    clock = Clock()
    sweeper = _deleting_sweeper(database, store, clock)
    await sweeper.sweep_deleted()
    clock.now += DAY
    await sweeper.sweep_deleted()
    assert await database.run(retention_sql.get_deleted_video, gone) is not None
    clock.now += 1
    await sweeper.sweep_deleted()
    assert await database.run(retention_sql.get_deleted_video, gone) is None


async def test_a_tombstone_outlives_a_day_of_a_store_that_is_away(
    database: CrashingDatabase, store: AgingStore
) -> None:
    [gone] = await _deleted(database)
    await _put(store, _files(gone))
    clock = Clock()
    clock.now += 2 * DAY
    store.deletes_left = 0
    sweeper = _deleting_sweeper(database, store, clock)
    with pytest.raises(StorageUnavailableError):
        await sweeper.sweep_deleted()
    assert await database.run(retention_sql.get_deleted_video, gone) is not None
    store.deletes_left = 10
    assert await sweeper.sweep_deleted() == 1
    assert await _left(store) == set()
    assert await database.run(retention_sql.get_deleted_video, gone) is None


async def test_a_woken_sweeper_deletes_at_once(database: CrashingDatabase, store: AgingStore) -> None:
    [first] = await _deleted(database)
    await _put(store, _files(first))
    sweeper = _sweeper(database, store, sweep_every_s=1e6)
    async with _running(sweeper):
        await _gone(store)
        for _ in range(2):
            [job_id] = await _add(database, JobState.COMPLETED)
            await _put(store, _video(job_id))
            await database.run(delete_ended_job, job_id, now=NOW)
            sweeper.wake()
            await _gone(store)


async def test_nobody_wakes_a_sweeper_whose_store_is_away(
    database: CrashingDatabase, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    [gone] = await _deleted(database)
    await _put(store, _files(gone))
    store.deletes_left = 0
    sweeper = _sweeper(database, store, sweep_every_s=1e6)
    with _logged(caplog):
        async with _running(sweeper):
            await _until(lambda: "object store is away" in caplog.text)
            for _ in range(20):
                sweeper.wake()
                await database.run(retention_sql.get_deleted_video, gone)
    assert caplog.text.count("object store is away") == 1


async def test_two_registries_delete_the_files_of_the_same_videos(
    database: CrashingDatabase, database_url: str, store: AgingStore
) -> None:
    many = await _deleted(database, BATCH + 20)
    await _put(store, {video_key(job_id) for job_id in many})
    second = Database(database_url)
    await asyncio.gather(*(_sweeper(each, store).sweep_deleted() for each in (database, second)))
    second.close()
    assert await _left(store) == set()
    assert await database.run(retention_sql.deleted_videos_with_files, limit=10) == []


# Orphans


@pytest.mark.parametrize("state", [None, *JobState])
async def test_orphans_are_what_no_job_needs(
    database: CrashingDatabase, store: AgingStore, state: JobState | None
) -> None:
    job_id = _id() if state is None else (await _add(database, state))[0]
    sweeper = _sweeper(database, store)
    await _put(store, _files(job_id))
    await _announced(sweeper, store, 1.1)
    count = await sweeper.sweep_orphans()
    kept: set[str] = set()
    if state in LIVE:
        kept = _files(job_id)
    elif state is JobState.COMPLETED:
        kept = _video(job_id)
    assert await _left(store) == kept
    assert count == len(_files(job_id)) - len(kept)


async def test_what_a_zombie_writes_after_the_end_is_found(database: CrashingDatabase, store: AgingStore) -> None:
    [job_id] = await _add(database, JobState.COMPLETED)
    sweeper = _sweeper(database, store)
    await sweeper.sweep_expired()
    await _put(store, {checkpoint_key(job_id, 6), video_key(job_id)})
    await _announced(sweeper, store, 1.1)
    assert await sweeper.sweep_expired() == Swept(0, 0, 0)
    assert await sweeper.sweep_orphans() == 1
    assert await _left(store) == {video_key(job_id)}


async def test_young_files_are_no_orphans_by_the_clock_of_the_store(
    database: CrashingDatabase, store: AgingStore
) -> None:
    young, old = _id(), _id()
    await _put(store, _files(young) | _files(old))
    store.later = dict.fromkeys(_files(young), timedelta(days=1))
    sweeper = _sweeper(database, store)
    await _announced(sweeper, store, 0.9)
    assert await sweeper.sweep_orphans() == 0
    store.ahead = timedelta(days=1.1)
    assert await sweeper.sweep_orphans() == len(_files(old))
    assert await _left(store) == _files(young)


async def test_what_is_not_ours_stays(database: CrashingDatabase, store: AgingStore) -> None:
    foreign = {
        "ready",
        "holiday.mp4",
        "jobs/readme.txt",
        "jobs/mine/latents.safetensors",
        f"jobs/{_id()}/notes.txt",
        f"jobs/{_id()}/deep/latents.safetensors",
        "videos/holiday.mp4",
        f"videos/{_id()}.mov",
        f"videos-of-us/{_id()}.mp4",
        preview_key("0123abcd"),
        f"models/{_id()}/latents.safetensors",
        "mochi-serve/other/thing",
    }
    await _put(store, foreign)
    sweeper = _sweeper(database, store)
    await _announced(sweeper, store, 1000)
    await sweeper.sweep_expired()
    assert await sweeper.sweep_orphans() == 0
    assert await _left(store) == foreign


async def test_thousands_of_orphans_are_paged(
    database: CrashingDatabase, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    orphans = [_id() for _ in range(2 * PAGE + 300)]
    [completed] = await _add(database, JobState.COMPLETED)
    [live] = await _add(database, JobState.SAMPLING)
    written = {latents_key(job_id) for job_id in orphans} | {video_key(job_id) for job_id in orphans[:PAGE]}
    await _put(store, written | _files(live) | _video(completed))
    sweeper = _sweeper(database, store)
    await _announced(sweeper, store, 2)
    with _logged(caplog):
        assert await sweeper.sweep_orphans() == len(written)
    assert caplog.messages == [f"retention: deleted {len(written)} files that belonged to no job"]
    assert await _left(store) == _files(live) | _video(completed)


async def test_an_orphan_sweep_that_broke_off_is_done_by_the_next(
    database: CrashingDatabase, store: AgingStore
) -> None:
    orphan = _id()
    await _put(store, _files(orphan))
    sweeper = _sweeper(database, store)
    await _announced(sweeper, store, 2)
    store.deletes_left = 1
    with pytest.raises(StorageUnavailableError):
        await sweeper.sweep_orphans()
    assert await _left(store) == _video(orphan)
    store.deletes_left = 10
    assert await sweeper.sweep_orphans() == len(_video(orphan))


# A bucket and its installations


async def test_two_installations_in_one_bucket_lose_nothing_to_each_other(
    database: CrashingDatabase, other_database: Database, store: AgingStore, caplog: pytest.LogCaptureFixture
) -> None:
    [mine] = await _add(database, JobState.COMPLETED)
    [theirs] = await _add(other_database, JobState.COMPLETED)
    await _put(store, _video(mine) | _files(theirs))
    first, second = _sweeper(database, store), _sweeper(other_database, store)
    await first.sweep_orphans()
    await _announced(second, store, 100)
    caplog.clear()
    with _logged(caplog):
        assert await first.sweep_orphans() == 0
        assert await second.sweep_orphans() == 0
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    other_id = await other_database.run(meta_sql.installation_id)
    assert f"{MARKER_PREFIX}{other_id}" in caplog.messages[0]
    assert "bucket of its own" in caplog.messages[0]
    assert await _left(store) == _video(mine) | _files(theirs)


async def test_both_still_delete_what_is_their_own(
    database: CrashingDatabase, other_database: Database, store: AgingStore
) -> None:
    [mine] = await _add(database, JobState.COMPLETED, 31)
    [theirs] = await _add(other_database, JobState.COMPLETED)
    await _put(store, _files(mine) | _files(theirs))
    await _sweeper(other_database, store).sweep_orphans()
    assert await _sweeper(database, store).sweep_expired() == Swept(1, 1, 0)
    assert await _left(store) == _files(theirs)


async def test_the_marker_of_one_that_is_gone_can_be_deleted(
    database: CrashingDatabase, other_database: Database, store: AgingStore
) -> None:
    [theirs] = await _add(other_database, JobState.COMPLETED)
    await _put(store, _video(theirs))
    sweeper = _sweeper(database, store)
    await _sweeper(other_database, store).sweep_orphans()
    await _announced(sweeper, store, 2)
    assert await sweeper.sweep_orphans() == 0
    await store.delete(MARKER_PREFIX + await other_database.run(meta_sql.installation_id))
    assert await sweeper.sweep_orphans() == len(_video(theirs))


async def test_a_bucket_is_swept_only_orphan_days_after_the_marker_was_written(
    database: CrashingDatabase, store: AgingStore
) -> None:
    """Whoever else has files there has that long to write a marker too."""
    orphan = _id()
    await _put(store, _files(orphan))
    store.later = dict.fromkeys(_files(orphan), timedelta(days=-100))
    sweeper = _sweeper(database, store, orphan_days=3)
    own = MARKER_PREFIX + await database.run(meta_sql.installation_id)
    assert await sweeper.sweep_orphans() == 0
    store.ahead = timedelta(days=2.9)
    assert await sweeper.sweep_orphans() == 0
    assert await store.list_keys(MARKER_PREFIX) == [own]
    store.ahead = timedelta(days=3.1)
    assert await sweeper.sweep_orphans() == len(_files(orphan))


async def test_an_installation_knows_its_marker_after_a_restart(
    database: CrashingDatabase, database_url: str, store: AgingStore
) -> None:
    orphan = _id()
    await _put(store, _video(orphan))
    await _announced(_sweeper(database, store), store, 2)
    reopened = Database(database_url)
    assert await _sweeper(reopened, store).sweep_orphans() == len(_video(orphan))
    reopened.close()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def _gone(store: ObjectStore) -> None:
    async with asyncio.timeout(30):
        while await _left(store):
            await asyncio.sleep(0.01)
