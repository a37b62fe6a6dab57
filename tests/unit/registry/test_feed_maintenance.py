"""What the feed begins with, new keys, other registries on the same database, and a database that is away."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from deployments.errors import RegistryUnavailableError
from serve_app.access.exposure import NO_KEYS
from serve_app.access.tenants import AccessTable
from serve_app.config import SchedulingSettings
from serve_app.database import access as access_sql
from serve_app.database import meta as meta_sql
from serve_app.database.connection import Database
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs.intake import insert_job
from serve_app.database.jobs.listing import newest_jobs
from serve_app.feed.access_follower import AccessFollower
from serve_app.feed.job_cache import JobCache
from serve_app.feed.publisher import FIRST, Cursor
from serve_app.feed.read_leases import FeedTiming, Presence, PresenceTiming
from serve_app.jobs import JobFilter, Submission
from serve_app.registry.feed_maintenance import FeedMaintenance, OtherRegistries
from serve_app.registry.state import RegistryState
from serve_app.registry.timing import RegistryTiming
from tests.support.registry.world import SETTINGS, SPEC, Faults, FlakyDatabase
from tests.support.waiting import until

FAST = RegistryTiming(presence=PresenceTiming(beat_every_s=0.005))
# The bounds are a twentieth of what they are.
SHORT = RegistryTiming(
    feed=FeedTiming(valid_s=0.1),
    presence=PresenceTiming(beat_every_s=0.005, exclusive_s=0.15, silent_s=0.75),
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[FlakyDatabase]:
    made = FlakyDatabase(database_url, Faults())
    yield made
    made.close()


def state_on(database: Database, alone: bool = True, timing: RegistryTiming | None = None) -> RegistryState:
    timing = timing or (FAST if alone else SHORT)
    return RegistryState(database, SETTINGS, SchedulingSettings(), "here", alone=alone, timing=timing)


class Running:
    """A maintenance of the feed in the background."""

    def __init__(self, state: RegistryState, **options: Any) -> None:
        self.maintenance = FeedMaintenance(state, **options)
        self._task = asyncio.create_task(self.maintenance.run())

    async def __aenter__(self) -> FeedMaintenance:
        return self.maintenance

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


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


async def test_it_begins_with_the_newest_jobs(database: Database) -> None:
    await accept(database, 1, 2, 3, 4)
    state = state_on(database)
    async with Running(state, newest_jobs=3) as maintenance:
        await maintenance.ready.wait()
    assert sorted(job.created_at for job in state.feed.live_jobs()) == [102.0, 103.0, 104.0]
    assert state.feed.horizon == (102.0, f"video_{2:032x}")
    page = known(state).page(3, None, "desc", JobFilter())
    assert page is None  # whether there are more is told by SQL alone
    page = known(state).page(2, None, "desc", JobFilter())
    assert page is not None and [job.created_at for job in page.jobs] == [104.0, 103.0]


async def test_where_it_knows_all_there_is_no_horizon(database: Database) -> None:
    await accept(database, 1, 2)
    state = state_on(database)
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
    assert state.feed.horizon == FIRST
    assert listed(known(state)) == [2, 1]


async def test_new_keys_are_heard_of(database: Database) -> None:
    state = state_on(database)
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
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
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
        cursor = state.feed.batch_since(Cursor()).cursor
        await database.run(access_sql.create_key, "acme", label="laptop", expires_at=None, now=1.0)
        await until(lambda: state.access.version > cursor.access)
        await state.feed.wait_for_news("follower", cursor)
        told = state.feed.batch_since(cursor).access
        assert told is not None and told.version > cursor.access


async def test_who_polls_for_keys_alone_gets_each_change_and_no_second_time_the_same(database: Database) -> None:
    state = state_on(database, timing=replace(FAST, feed=FeedTiming(hold_s=0.05)))
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
        follower = AccessFollower(_Polled(maintenance))
        running = asyncio.create_task(follower.run())
        first = await follower.access()
        assert first == state.access and await maintenance.access_after(first.version) is None
        await database.run(access_sql.create_key, "acme", label="laptop", expires_at=None, now=1.0)
        wanted = await maintenance.refresh_access()
        table = await follower.access(wanted)
        assert table.version >= wanted and set(table.tenants) == {"acme"}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_who_follows_keys_says_so_while_none_were_told() -> None:
    follower = AccessFollower(_Polled(None), FeedTiming(first_batch_s=0.02))
    with pytest.raises(RegistryUnavailableError, match="has not told yet"):
        await follower.access()


class _Polled:
    """The part of the registry that is polled for keys."""

    def __init__(self, maintenance: FeedMaintenance | None) -> None:
        self._maintenance = maintenance

    async def poll_access(self, version: int) -> AccessTable | None:
        assert self._maintenance is not None
        return await self._maintenance.access_after(version)


async def test_it_reads_keys_only_when_they_changed(database: FlakyDatabase) -> None:
    state = state_on(database)
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
        for count in (1, 2):
            await asyncio.sleep(0.05)
            assert database.faults.calls[access_sql.load_access] == count
            await database.run(access_sql.create_tenant, f"tenant-{count}", now=1.0)
            await until(lambda count=count: f"tenant-{count}" in state.access.tenants)  # type: ignore[misc]


@pytest.mark.parametrize(("mode", "noticed"), [("keys", True), ("auto", False), ("open-to-anyone", False)])
async def test_a_server_without_keys_that_needs_them_says_so(
    database: Database, caplog: pytest.LogCaptureFixture, mode: str, noticed: bool
) -> None:
    async with Running(state_on(database), mode=mode) as maintenance:
        await maintenance.ready.wait()
    assert (NO_KEYS in caplog.text) == noticed


@pytest.mark.parametrize("function", [newest_jobs, access_sql.load_access])
async def test_a_database_that_is_away_at_the_start(database: FlakyDatabase, function: Any) -> None:
    """It is ready only with the newest jobs, and only with the tenants and keys."""
    await accept(database, 1)
    database.faults.take_away(function)
    state = state_on(database)
    async with Running(state) as maintenance:
        await asyncio.sleep(0.15)
        assert not maintenance.ready.is_set()
        database.faults.errors.clear()
        await asyncio.wait_for(maintenance.ready.wait(), 300)
    assert listed(known(state)) == [1]
    assert state.feed.access is not None


@pytest.mark.parametrize("error", [RegistryUnavailableError("away"), ZeroDivisionError("a defect")])
async def test_whatever_fails_later_is_tried_again(database: FlakyDatabase, error: Exception) -> None:
    state = state_on(database)
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
        database.faults.errors[access_sql.access_version] = error
        await database.run(access_sql.create_tenant, "acme", now=1.0)
        await asyncio.sleep(0.15)
        assert "acme" not in state.access.tenants
        database.faults.errors.clear()
        await until(lambda: "acme" in state.access.tenants)


# Other registries


def has_to_wait(state: RegistryState) -> bool:
    """Whether a write must wait for followers that do not know of it, though no follower has asked here."""
    now = time.monotonic()
    return state.feed.leases.ends_without(0, published_at=now, now=now) is not None


async def beat(database: Database, owner: str, at: float) -> None:
    await database.run(meta_sql.write_heartbeat, owner, now=at)


async def test_alone_it_is_complete_and_writes_no_heartbeat(database: Database) -> None:
    state = state_on(database)
    async with Running(state) as maintenance:
        assert state.feed.is_complete()
        await maintenance.ready.wait()
        await asyncio.sleep(0.05)
        assert state.feed.is_complete()
    assert await database.run(meta_sql.read_heartbeats, "nobody", since=0.0) == (None, {})


async def test_where_others_may_be_it_is_complete_when_it_has_looked(database: Database) -> None:
    state = state_on(database, alone=False)
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
        assert not state.feed.is_complete()
        own, others = await database.run(meta_sql.read_heartbeats, "here", since=0.0)
        assert own is not None and not others
        await until(lambda: state.feed.is_complete())


@pytest.mark.parametrize("clock", [0.0, -3_600.0, 3_600.0])
async def test_while_another_one_shows_signs_of_life_it_is_not_complete(database: Database, clock: float) -> None:
    """However far apart the clocks of the two machines are."""
    state = state_on(database, alone=False)
    async with Running(state):
        await until(lambda: state.feed.is_complete())
        end = time.monotonic() + 1.5
        await beat(database, "there", time.time() + clock)
        await until(lambda: not state.feed.is_complete())
        while time.monotonic() < end:
            await beat(database, "there", time.time() + clock)
            assert not state.feed.is_complete()
            await asyncio.sleep(0.01)
        await until(lambda: state.feed.is_complete())


async def test_what_another_one_did_is_known_when_it_is_gone(database: Database) -> None:
    """A job that it made and ended, and one of ours that it deleted: neither was told here."""
    await accept(database, 1, 2)
    state = state_on(database, alone=False)
    await database.run(cancellation_sql.cancel, f"video_{1:032x}", now=200.0)
    async with Running(state):
        await until(lambda: state.feed.is_complete())
        before = state.feed.batch_since(Cursor()).cursor
        await beat(database, "there", 1.0e9 * 2)
        await until(lambda: not state.feed.is_complete())
        await accept(database, 3)
        await database.run(cancellation_sql.cancel, f"video_{3:032x}", now=201.0)
        await database.run(cancellation_sql.delete, f"video_{1:032x}", tenant=None, now=202.0)
        await until(lambda: state.feed.is_complete())
        assert state.feed.batch_since(before).reset
        mirror = known(state)
        assert listed(mirror) == [3, 2]
        assert mirror.get(f"video_{1:032x}") is None
        ended = mirror.get(f"video_{3:032x}")
        assert ended is not None and ended.final


async def test_one_that_cannot_look_is_not_complete_for_long(database: FlakyDatabase) -> None:
    state = state_on(database, alone=False)
    async with Running(state):
        await until(lambda: state.feed.is_complete())
        database.faults.take_away(meta_sql.read_heartbeats)
        await until(lambda: not state.feed.is_complete())
        assert state.feed.leases.presence is Presence.EXCLUSIVE  # it lapsed: nobody else was seen
        database.faults.errors.clear()
        await until(lambda: state.feed.is_complete())


async def test_what_one_that_comes_writes_is_told_when_the_others_have_noticed_it(database: Database) -> None:
    loop = asyncio.get_running_loop()
    state, begun_at = state_on(database, alone=False), loop.time()
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
        await state.feed.flush()
        assert loop.time() - begun_at >= 0.25
        assert not has_to_wait(state)


async def test_one_that_is_there_again_at_once_needs_no_notice(database: Database) -> None:
    state = state_on(database, alone=False, timing=RegistryTiming())
    async with Running(state) as maintenance:
        await maintenance.ready.wait()
        assert has_to_wait(state)
    again = state_on(database, alone=False, timing=RegistryTiming())
    async with Running(again) as maintenance:
        await maintenance.ready.wait()
        assert not has_to_wait(again)


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
    others = OtherRegistries(15.0)
    assert others.alive({"a": 1.0, "b": 7.0}, 100.0) == ["a", "b"]
    assert others.alive({"a": 1.0, "b": 6.0}, 110.0) == ["a", "b"]
    assert others.alive({"a": 1.0, "b": 6.0}, 114.9) == ["a", "b"]
    assert others.alive({"a": 1.0, "b": 6.0}, 115.0) == ["b"]
    assert others.alive({"b": 6.0}, 125.0) == []
    assert others.alive({"a": 1.0}, 126.0) == ["a"]


def test_seconds_are_far_enough_apart() -> None:
    """A registry that is silent arrives anew before it is taken for gone, and the others look often enough."""
    timing = PresenceTiming()
    assert timing.exclusive_s > timing.beat_every_s
    assert timing.silent_s > timing.arrives_after_s > timing.exclusive_s
