"""What the feed begins with, new keys, other registries on the same database, and a database that is away."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from deployments.errors import RegistryUnavailableError
from serve_app.access.exposure import NO_KEYS
from serve_app.config import SchedulingSettings
from serve_app.database import access as access_sql
from serve_app.database import jobs as jobs_sql
from serve_app.database import meta as meta_sql
from serve_app.database.connection import Database
from serve_app.database.intake import insert_job
from serve_app.database.listing import list_jobs
from serve_app.feed.job_cache import JobCache
from serve_app.feed.publisher import FIRST, VALID_S, Cursor
from serve_app.jobs import JobFilter, Submission
from serve_app.registry import feed_maintenance
from serve_app.registry.feed_maintenance import FeedMaintenance, OtherBeats
from serve_app.registry.state import RegistryState
from tests.support.registry_world import SETTINGS, SPEC

pytestmark = pytest.mark.usefixtures("fast")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_maintenance, "EVERY_S", 0.005)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    made = Database(url)
    yield made
    made.close()


def state_on(database: Database, owner: str = "here") -> RegistryState:
    return RegistryState(database, SETTINGS, SchedulingSettings(), owner)


class Running:
    """An upkeep in the background."""

    def __init__(self, state: RegistryState, **options: Any) -> None:
        self.upkeep = FeedMaintenance(state, **{"alone": True, **options})
        self._task = asyncio.create_task(self.upkeep.run())

    async def __aenter__(self) -> FeedMaintenance:
        return self.upkeep

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):
        while not true():
            await asyncio.sleep(0.002)


async def accept(database: Database, *numbers: int, at: float = 100.0) -> None:
    for number in numbers:
        new = Submission(f"video_{number:032x}", "m", SPEC)
        await database.run(insert_job, new, now=at + number, keep_keys_s=60.0)


def known(state: RegistryState) -> JobCache:
    """What a follower that asks now knows."""
    mirror = JobCache()
    mirror.apply(state.feed.batch_since(Cursor()))
    return mirror


def listed(mirror: JobCache) -> list[int] | None:
    page = mirror.page(100, None, "desc", JobFilter())
    return None if page is None else [int(job.id.removeprefix("video_"), 16) for job in page.jobs]


async def test_it_begins_with_the_newest_jobs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_maintenance, "RECENT", 3)
    await accept(database, 1, 2, 3, 4)
    state = state_on(database)
    async with Running(state) as upkeep:
        await upkeep.begun.wait()
    assert sorted(job.created_at for job in state.feed.live_jobs()) == [102.0, 103.0, 104.0]
    assert state.feed.horizon == (102.0, f"video_{2:032x}")
    page = known(state).page(3, None, "desc", JobFilter())
    assert page is None  # whether there are more is told by SQL alone
    page = known(state).page(2, None, "desc", JobFilter())
    assert page is not None and [job.created_at for job in page.jobs] == [104.0, 103.0]


async def test_where_it_knows_all_there_is_no_horizon(database: Database) -> None:
    await accept(database, 1, 2)
    state = state_on(database)
    async with Running(state) as upkeep:
        await upkeep.begun.wait()
    assert state.feed.horizon == FIRST
    assert listed(known(state)) == [2, 1]


async def test_new_keys_are_heard_of(database: Database) -> None:
    state = state_on(database)
    async with Running(state) as upkeep:
        await upkeep.begun.wait()
        assert state.feed.access == state.access
        assert not state.access.keys
        key, _ = await database.run(access_sql.create_key, "acme", label="laptop", expires_at=None, now=1.0)
        await until(lambda: key.hash in state.access.keys)
        assert state.feed.access == state.access
        await database.run(access_sql.revoke_key, key.id, now=2.0)
        await until(lambda: state.access.keys[key.hash].revoked_at == 2.0)
        await database.run(access_sql.delete_tenant, "acme")
        await until(lambda: not state.access.tenants)


async def test_followers_are_told_of_keys_at_once(database: Database) -> None:
    state = state_on(database)
    async with Running(state) as upkeep:
        await upkeep.begun.wait()
        cursor = state.feed.batch_since(Cursor()).cursor
        await database.run(access_sql.create_key, "acme", label="laptop", expires_at=None, now=1.0)
        await until(lambda: state.access.version > cursor.access)
        await state.feed.wait_for_news("follower", cursor)
        told = state.feed.batch_since(cursor).access
        assert told is not None and told.version > cursor.access


async def test_it_reads_keys_only_when_they_changed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = access_sql.load_access, 0

    def counted(connection: Connection) -> Any:
        nonlocal reads
        reads += 1
        return read(connection)

    monkeypatch.setattr(access_sql, "load_access", counted)
    state = state_on(database)
    async with Running(state) as upkeep:
        await upkeep.begun.wait()
        for count in (1, 2):
            await asyncio.sleep(0.05)
            assert reads == count
            await database.run(access_sql.create_tenant, f"tenant-{count}", now=1.0)
            await until(lambda count=count: f"tenant-{count}" in state.access.tenants)  # type: ignore[misc]


@pytest.mark.parametrize(("mode", "noticed"), [("keys", True), ("auto", False), ("open-to-anyone", False)])
async def test_a_server_without_keys_that_needs_them_says_so(
    database: Database, caplog: pytest.LogCaptureFixture, mode: str, noticed: bool
) -> None:
    async with Running(state_on(database), mode=mode) as upkeep:
        await upkeep.begun.wait()
    assert (NO_KEYS in caplog.text) == noticed


async def test_a_database_that_is_away_at_the_start(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    list_now, away = list_jobs, True

    def sometimes(*args: Any, **options: Any) -> Any:
        if away:
            raise RegistryUnavailableError("away on purpose")
        return list_now(*args, **options)

    monkeypatch.setattr(feed_maintenance, "list_jobs", sometimes)
    await accept(database, 1)
    state = state_on(database)
    async with Running(state) as upkeep:
        await asyncio.sleep(0.05)
        assert not upkeep.begun.is_set()
        away = False
        await asyncio.wait_for(upkeep.begun.wait(), 300)
    assert listed(known(state)) == [1]


async def test_it_is_begun_only_with_the_keys(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    load, away = access_sql.load_access, True

    def sometimes(connection: Connection) -> Any:
        if away:
            raise RegistryUnavailableError("away on purpose")
        return load(connection)

    monkeypatch.setattr(access_sql, "load_access", sometimes)
    state = state_on(database)
    async with Running(state) as upkeep:
        await asyncio.sleep(0.05)
        assert not upkeep.begun.is_set()
        away = False
        await asyncio.wait_for(upkeep.begun.wait(), 300)
        assert state.feed.access is not None


@pytest.mark.parametrize("error", [RegistryUnavailableError("away"), ZeroDivisionError("a defect")])
async def test_whatever_fails_later_is_tried_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    version, away = access_sql.access_version, False

    def sometimes(connection: Connection) -> int:
        if away:
            raise error
        return version(connection)

    monkeypatch.setattr(access_sql, "access_version", sometimes)
    state = state_on(database)
    async with Running(state) as upkeep:
        await upkeep.begun.wait()
        away = True
        await database.run(access_sql.create_tenant, "acme", now=1.0)
        await asyncio.sleep(0.05)
        assert "acme" not in state.access.tenants
        away = False
        await until(lambda: "acme" in state.access.tenants)


# Other registries


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The bounds in seconds, all a twentieth of what they are."""
    monkeypatch.setattr(feed_maintenance, "WHOLE_S", 0.15)
    monkeypatch.setattr(feed_maintenance, "SILENT_S", 0.75)
    monkeypatch.setattr(feed_maintenance, "COMING_S", 0.25)
    yield


async def beat(database: Database, owner: str, at: float) -> None:
    await database.run(meta_sql.write_heartbeat, owner, now=at)


async def test_alone_it_is_whole_and_says_nothing(database: Database) -> None:
    state = state_on(database)
    async with Running(state) as upkeep:
        assert state.feed.complete
        await upkeep.begun.wait()
        await asyncio.sleep(0.05)
        assert state.feed.complete
    assert await database.run(meta_sql.read_heartbeats, "nobody", since=0.0) == (None, {})


@pytest.mark.usefixtures("times")
async def test_where_others_may_be_it_is_whole_when_it_has_looked(database: Database) -> None:
    state = state_on(database)
    async with Running(state, alone=False) as upkeep:
        await upkeep.begun.wait()
        assert not state.feed.complete
        own, others = await database.run(meta_sql.read_heartbeats, "here", since=0.0)
        assert own is not None and not others
        await until(lambda: state.feed.complete)


@pytest.mark.usefixtures("times")
@pytest.mark.parametrize("clock", [0.0, -3_600.0, 3_600.0])
async def test_while_another_one_shows_signs_of_life_it_is_not_whole(database: Database, clock: float) -> None:
    """However far apart the clocks of the two machines are."""
    state = state_on(database)
    async with Running(state, alone=False):
        await until(lambda: state.feed.complete)
        end = time.monotonic() + 1.5
        await beat(database, "there", time.time() + clock)
        await until(lambda: not state.feed.complete)
        while time.monotonic() < end:
            await beat(database, "there", time.time() + clock)
            assert not state.feed.complete
            await asyncio.sleep(0.01)
        await until(lambda: state.feed.complete)


@pytest.mark.usefixtures("times")
async def test_what_another_one_did_is_known_when_it_is_gone(database: Database) -> None:
    """A job that it made and ended, and one of ours that it deleted: neither was told here."""
    await accept(database, 1, 2)
    state = state_on(database)
    await database.run(jobs_sql.cancel, f"video_{1:032x}", now=200.0)
    async with Running(state, alone=False):
        await until(lambda: state.feed.complete)
        before = state.feed.batch_since(Cursor()).cursor
        await beat(database, "there", 1.0e9 * 2)
        await until(lambda: not state.feed.complete)
        await accept(database, 3)
        await database.run(jobs_sql.cancel, f"video_{3:032x}", now=201.0)
        await database.run(jobs_sql.delete, f"video_{1:032x}", tenant=None, now=202.0)
        await until(lambda: state.feed.complete)
        assert state.feed.batch_since(before).reset
        mirror = known(state)
        assert listed(mirror) == [3, 2]
        assert mirror.get(f"video_{1:032x}") is None
        ended = mirror.get(f"video_{3:032x}")
        assert ended is not None and ended.final


@pytest.mark.usefixtures("times")
async def test_one_that_cannot_look_is_not_whole_for_long(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    beats, away = meta_sql.read_heartbeats, False

    def sometimes(*args: Any, **options: Any) -> Any:
        if away:
            raise RegistryUnavailableError("away on purpose")
        return beats(*args, **options)

    monkeypatch.setattr(feed_maintenance, "read_heartbeats", sometimes)
    state = state_on(database)
    async with Running(state, alone=False):
        await until(lambda: state.feed.complete)
        away = True
        await until(lambda: not state.feed.complete)
        away = False
        await until(lambda: state.feed.complete)


@pytest.mark.usefixtures("times")
async def test_what_one_that_comes_writes_is_told_when_the_others_have_noticed_it(database: Database) -> None:
    loop = asyncio.get_running_loop()
    state, begun_at = state_on(database), loop.time()
    async with Running(state, alone=False) as upkeep:
        await upkeep.begun.wait()
        await state.feed.flush()
        assert loop.time() - begun_at >= 0.25
        at = loop.time()
        await state.feed.flush()
        assert state.feed.quiet_until < at


@pytest.mark.usefixtures("times")
async def test_one_that_is_there_again_at_once_needs_no_notice(database: Database) -> None:
    state = state_on(database)
    async with Running(state, alone=False) as upkeep:
        await upkeep.begun.wait()
    again = state_on(database)
    async with Running(again, alone=False) as upkeep:
        await upkeep.begun.wait()
        assert again.feed.quiet_until == float("-inf")


async def test_beats_that_are_old_are_forgotten(database: Database) -> None:
    for owner, at in (("here", 10.0), ("old", 99.9), ("new", 100.0)):
        await beat(database, owner, at)
    assert await database.run(meta_sql.read_heartbeats, "here", since=100.0) == (10.0, {"new": 100.0})
    assert await database.run(meta_sql.read_heartbeats, "here", since=0.0) == (None, {"new": 100.0})


async def test_a_long_name_is_known_as_its_own(database: Database) -> None:
    owner = "session_" + "x" * 80
    await beat(database, owner, 5.0)
    assert await database.run(meta_sql.read_heartbeats, owner, since=0.0) == (5.0, {})


def test_an_owner_is_alive_while_its_beat_changes() -> None:
    others = OtherBeats(15.0)
    assert others.alive({"a": 1.0, "b": 7.0}, 100.0) == ["a", "b"]
    assert others.alive({"a": 1.0, "b": 6.0}, 110.0) == ["a", "b"]
    assert others.alive({"a": 1.0, "b": 6.0}, 114.9) == ["a", "b"]
    assert others.alive({"a": 1.0, "b": 6.0}, 115.0) == ["b"]
    assert others.alive({"b": 6.0}, 125.0) == []
    assert others.alive({"a": 1.0}, 126.0) == ["a"]


def test_seconds_are_far_enough_apart() -> None:
    """One that comes is noticed before its writes are told; who is silent comes anew before it is taken for gone."""
    assert feed_maintenance.WHOLE_S > feed_maintenance.EVERY_S
    assert feed_maintenance.COMING_S >= feed_maintenance.WHOLE_S + VALID_S
    assert feed_maintenance.SILENT_S / 2 > feed_maintenance.WHOLE_S
