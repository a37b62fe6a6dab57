"""Ingress replicas that follow a real registry: whoever wrote reads it back at each of them, whatever happens."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import RegistryUnavailableError
from deployments.replica.registry_link import Method, P, T
from serve_app.config import SchedulingSettings
from serve_app.database import access as access_sql
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs import overview as overview_sql
from serve_app.database.jobs.intake import insert_job
from serve_app.feed.follower import FeedFollower
from serve_app.feed.new_keys import NewKeys
from serve_app.feed.publisher import Batch, Cursor
from serve_app.feed.read_leases import FeedTiming, PresenceTiming
from serve_app.jobs import EVERY_VIDEO, Job, JobPage, Submission
from serve_app.registry.actor import JobRegistry
from serve_app.registry.timing import DispatchTiming, RegistryTiming
from serve_app.registry_api import RegistryApi, RegistryClient
from tests.support.registry.world import SETTINGS, SPEC, Faults, FlakyDatabase, Workers
from tests.support.servers.postgres import fresh_database
from tests.support.waiting import until


@dataclass
class Cluster:
    """A registry that can be killed and started again, and the way to it as ingress replicas have it."""

    url: str
    owner: str = "cluster"
    timing: RegistryTiming = RegistryTiming()
    registry: JobRegistry = field(init=False)
    database: FlakyDatabase = field(init=False)  # the registry's own
    faults: Faults = field(default_factory=Faults)
    lives: int = 0
    stuck: set[str] = field(default_factory=set)  # followers whose calls do not come through

    def start(self) -> None:
        was_restarted = self.lives > 0
        self.registry = JobRegistry(
            database_url=self.url,
            jobs=SETTINGS,
            scheduling=SchedulingSettings(),
            owner=self.owner,
            send=Workers(),
            was_restarted=lambda: was_restarted,
            timing=self.timing,
            open_database=self._open_database,
        )
        self.lives += 1

    def _open_database(self, url: str) -> FlakyDatabase:
        self.database = FlakyDatabase(url, self.faults)
        return self.database

    async def restart(self) -> None:
        await self.registry.close()
        self.start()

    async def call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if method is RegistryApi.poll_feed:
            while args[0] in self.stuck:
                await asyncio.sleep(0.01)
        life = self.lives
        call: Awaitable[T] = getattr(self.registry, method.__name__)(*args, **kwargs)
        answering = asyncio.ensure_future(call)
        while not answering.done():
            await asyncio.wait([answering], timeout=0.05)
            if life != self.lives:
                answering.cancel()
                raise RegistryUnavailableError("the registry was killed")
        return answering.result()


@asynccontextmanager
async def following(cluster: Cluster, count: int) -> AsyncIterator[list[FeedFollower]]:
    feeds = [FeedFollower(RegistryClient(cluster), cluster.timing.feed) for _ in range(count)]
    tasks = [asyncio.create_task(feed.run()) for feed in feeds]
    for feed in feeds:
        await until(lambda feed=feed: feed.valid)  # type: ignore[misc]
    yield feeds
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(f"sqlite:///{tmp_path / 'jobs.db'}")
    made.start()
    yield made
    await made.registry.close()


def submission(number: int) -> Submission:
    return Submission(f"video_{number:032x}", "m", SPEC)


async def seen(feed: FeedFollower, cluster: Cluster, job_id: str) -> Job | None:
    """As `Services.job` finds it."""
    job: Job | None = feed.get(job_id) or await retried(cluster, RegistryApi.get, job_id)
    return job


async def page(feed: FeedFollower, cluster: Cluster) -> JobPage:
    known = feed.page(100, None, "desc", EVERY_VIDEO)
    if known is not None:
        return known
    return await retried(cluster, RegistryApi.list_jobs, 100, None, "desc", EVERY_VIDEO)


async def test_what_was_written_is_read_back_at_each_replica(cluster: Cluster) -> None:
    async with following(cluster, 3) as feeds:
        for number in range(20):
            job_id = (await cluster.call(RegistryApi.submit, submission(number))).job.id
            for feed in feeds:
                # Without a call of the registry. A replica that was asked late knows nothing for a moment.
                await until(lambda feed=feed, job_id=job_id: feed.get(job_id) is not None)  # type: ignore[misc]
                assert (await page(feed, cluster)).jobs[0].id == job_id
            await cluster.call(RegistryApi.cancel, job_id)
            assert {str(job.state) for feed in feeds if (job := feed.get(job_id))} <= {"cancelled"}
            await until(lambda job_id=job_id: all(feed.get(job_id) for feed in feeds))  # type: ignore[misc]
            if number % 2:
                assert await cluster.call(RegistryApi.delete, job_id, None)
                assert [feed.get(job_id) for feed in feeds] == [None] * 3
                assert await cluster.call(RegistryApi.get, job_id) is None


async def test_histories_come_with_the_feed(cluster: Cluster) -> None:
    async with following(cluster, 1) as (feed,):
        job_id = (await cluster.call(RegistryApi.submit, submission(1))).job.id
        await cluster.call(RegistryApi.cancel, job_id)
        assert list(feed.moves(job_id) or ()) == await cluster.call(RegistryApi.history, job_id)


async def test_a_stuck_replica_does_not_tell_old_news(cluster: Cluster) -> None:
    async with following(cluster, 2) as (good, bad):
        job_id = (await cluster.call(RegistryApi.submit, submission(1))).job.id
        await until(lambda: bad.get(job_id) is not None)
        cluster.stuck.add(bad.name)
        await cluster.call(RegistryApi.cancel, job_id)
        assert (await seen(good, cluster, job_id)).state == "cancelled"  # type: ignore[union-attr]
        assert (await seen(bad, cluster, job_id)).state == "cancelled"  # type: ignore[union-attr]
        assert bad.get(job_id) is None or bad.get(job_id).state == "cancelled"  # type: ignore[union-attr]
        cluster.stuck.clear()
        await until(lambda: (known := bad.get(job_id)) and known.state == "cancelled")


async def test_a_restart_of_the_registry_tells_no_old_news(cluster: Cluster) -> None:
    async with following(cluster, 2) as feeds:
        ids = [(await cluster.call(RegistryApi.submit, submission(number))).job.id for number in range(5)]
        # The replicas believe what they know for a while; the new registry's writes wait for that.
        cluster.stuck |= {feed.name for feed in feeds}
        await cluster.restart()
        await cluster.call(RegistryApi.cancel, ids[0])
        for feed in feeds:
            assert (await seen(feed, cluster, ids[0])).state == "cancelled"  # type: ignore[union-attr]
        cluster.stuck.clear()
        await until(lambda: all(feed.valid for feed in feeds))
        for feed in feeds:
            assert [job.id for job in (await page(feed, cluster)).jobs] == ids[::-1]


async def test_many_writers_and_kills(cluster: Cluster) -> None:
    """Random writes through a cluster whose registry is killed now and then: after each, every replica tells it."""
    draw = random.Random(5)
    truth: dict[str, str | None] = {}

    async def check(feeds: list[FeedFollower], job_id: str, state: str | None) -> None:
        for feed in draw.sample(feeds, 2):
            job = await seen(feed, cluster, job_id)
            assert (None if job is None else str(job.state)) == state
            listed = {job.id for job in (await page(feed, cluster)).jobs}
            assert (job_id in listed) == (state is not None)

    async def write(feeds: list[FeedFollower], number: int) -> None:
        job_id = (await retried(cluster, RegistryApi.submit, submission(number))).job.id
        truth[job_id] = "queued"
        await check(feeds, job_id, "queued")
        await asyncio.sleep(draw.random() * 0.2)
        await retried(cluster, RegistryApi.cancel, job_id)
        await check(feeds, job_id, "cancelled")
        truth[job_id] = "cancelled"
        if draw.random() < 0.5:
            assert await retried(cluster, RegistryApi.delete, job_id, None)
            truth[job_id] = None
            await check(feeds, job_id, None)

    async with following(cluster, 3) as feeds:
        writing = asyncio.gather(*(write(feeds, number) for number in range(40)))
        for _ in range(2):
            await asyncio.sleep(0.1)
            await cluster.restart()
        await writing
        for job_id, state in truth.items():
            await check(feeds, job_id, state)


async def retried(cluster: Cluster, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    while True:
        try:
            return await cluster.call(method, *args, **kwargs)
        except RegistryUnavailableError:
            await asyncio.sleep(0.01)


async def test_a_deletion_whose_answer_was_lost_is_told_when_it_is_repeated(cluster: Cluster) -> None:
    async with following(cluster, 2) as feeds:
        job_id = (await cluster.call(RegistryApi.submit, submission(1))).job.id
        await cluster.call(RegistryApi.cancel, job_id)
        cluster.faults.lost_answers.add(cancellation_sql.delete)
        with pytest.raises(RegistryUnavailableError):
            await cluster.call(RegistryApi.delete, job_id, None)
        assert await cluster.call(RegistryApi.delete, job_id, None)
        for feed in feeds:
            assert await seen(feed, cluster, job_id) is None
            assert not (await page(feed, cluster)).jobs


async def test_a_job_whose_acceptance_was_lost_is_told_when_it_is_repeated(cluster: Cluster) -> None:
    cluster.timing = RegistryTiming(dispatch=DispatchTiming(reconcile_s=1000.0))
    await cluster.restart()
    async with following(cluster, 2) as feeds:
        cluster.faults.lost_answers.add(insert_job)
        with pytest.raises(RegistryUnavailableError):
            await cluster.call(RegistryApi.submit, submission(1))
        accepted = await cluster.call(RegistryApi.submit, submission(1))
        assert accepted.repeated
        for feed in feeds:
            assert [job.id for job in (await page(feed, cluster)).jobs] == [accepted.job.id]


async def test_who_is_told_of_an_end_by_webhook_reads_it_back(cluster: Cluster) -> None:
    """The secret is asked for before each try, and waits until all replicas know of the end."""
    async with following(cluster, 2) as feeds:
        job_id = (await cluster.call(RegistryApi.submit, submission(1))).job.id
        cluster.stuck |= {feed.name for feed in feeds}
        cancelling = asyncio.create_task(cluster.call(RegistryApi.cancel, job_id))
        while await cluster.database.run(overview_sql.count_live):
            await asyncio.sleep(0.001)
        # The end is written, and they have not said that they know of it.
        asking = asyncio.create_task(cluster.registry.webhook_secret("default"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        cluster.stuck.clear()
        await asking
        assert {str(known.state) for feed in feeds if (known := feed.get(job_id))} <= {"cancelled"}
        await until(lambda: all(feed.get(job_id) for feed in feeds))
        await cancelling


class Garbled:
    """A registry whose batches make no sense while `on`."""

    def __init__(self, registry: RegistryClient) -> None:
        self._registry = registry
        self.on = False

    async def poll_feed(self, follower: str, cursor: Cursor) -> Batch:
        batch = await self._registry.poll_feed(follower, cursor)
        nonsense: Any = None
        return replace(batch, changes=nonsense) if self.on else batch


async def test_a_defect_does_not_end_the_feed(cluster: Cluster) -> None:
    """A replica that followed no more would never hear of a key that is revoked."""
    registry = Garbled(RegistryClient(cluster))
    feed = FeedFollower(registry)
    following = asyncio.create_task(feed.run())
    await until(lambda: feed.valid)
    job_id = (await cluster.call(RegistryApi.submit, submission(1))).job.id
    registry.on = True
    await until(lambda: not feed.valid)
    assert feed.get(job_id) is None
    assert await feed.access()
    registry.on = False
    await until(lambda: feed.get(job_id) is not None)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_without_a_word_of_the_registry_nobody_waits_for_ever() -> None:
    feed = FeedFollower(RegistryClient(Cluster("sqlite://")), FeedTiming(first_batch_s=0.05))
    with pytest.raises(RegistryUnavailableError, match="try again"):
        await feed.access()


async def test_a_key_made_elsewhere_is_known_at_each_replica_that_asks(cluster: Cluster) -> None:
    """Though the registry itself would not look for hours; and one that is revoked stays so."""
    cluster.timing = RegistryTiming(presence=PresenceTiming(beat_every_s=3600.0))
    await cluster.restart()
    async with following(cluster, 3) as feeds:
        new_keys = [NewKeys(RegistryClient(cluster), feed) for feed in feeds]
        read_before = cluster.faults.calls[access_sql.load_access]
        for number in range(5):
            key, _ = await cluster.database.run(
                access_sql.create_key, "acme", label="", expires_at=None, now=float(number)
            )
            tables = await asyncio.gather(*(each.table_for(key.hash) for each in new_keys))
            assert [table.keys.get(key.hash) for table in tables] == [key] * 3
            await cluster.database.run(access_sql.revoke_key, key.id, now=100.0)
        assert cluster.faults.calls[access_sql.load_access] == read_before + 5
        tables = await asyncio.gather(*(each.table_for("the hash of no key") for each in new_keys))
        assert {key.revoked_at for table in tables for key in table.keys.values()} == {100.0}


@pytest.fixture
async def two_clusters(postgres_uri: str) -> AsyncIterator[list[Cluster]]:
    """The second one is not started yet. All times of theirs are a quarter of what they are."""
    timing = RegistryTiming(
        feed=FeedTiming(valid_s=0.5, hold_s=0.25),
        presence=PresenceTiming(beat_every_s=0.25, exclusive_s=0.75, silent_s=3.75),
    )
    with fresh_database(postgres_uri) as url:
        clusters = [Cluster(url, owner, timing) for owner in ("one", "two")]
        clusters[0].start()
        yield clusters
        for cluster in clusters:
            if cluster.lives:
                await cluster.registry.close()


async def test_two_registries_on_one_database_tell_no_old_news(two_clusters: list[Cluster]) -> None:
    """A second one comes, writes at once and goes: who asks the first one is told what holds, all the while."""
    one, two = two_clusters
    async with following(one, 2) as feeds:

        async def check(job_id: str, state: str | None) -> None:
            for feed in feeds:
                job = await seen(feed, one, job_id)
                assert (None if job is None else str(job.state)) == state
                listed = {job.id: str(job.state) for job in (await page(feed, one)).jobs}
                assert listed.get(job_id) == state

        mine = [(await one.call(RegistryApi.submit, submission(number))).job.id for number in range(3)]
        await until(lambda: all(feed.get(mine[0]) for feed in feeds))
        two.start()
        await two.call(RegistryApi.cancel, mine[0])
        await check(mine[0], "cancelled")
        await two.call(RegistryApi.delete, mine[1], None)
        await check(mine[1], None)
        theirs = (await two.call(RegistryApi.submit, submission(10))).job.id
        await check(theirs, "queued")
        assert not any(feed.valid for feed in feeds)
        await two.call(RegistryApi.cancel, theirs)
        await one.call(RegistryApi.cancel, mine[2])
        await two.call(RegistryApi.delete, mine[2], None)
        await two.registry.close()
        two.lives = 0
        await until(lambda: all(feed.valid for feed in feeds))
        await check(theirs, "cancelled")
        await check(mine[0], "cancelled")
        for job_id in mine[1:]:
            await check(job_id, None)
        await until(lambda: all(feed.get(theirs) for feed in feeds))


async def test_new_keys_reach_the_replicas(cluster: Cluster) -> None:
    async with following(cluster, 1) as (feed,):
        before = (await feed.access()).version
        key, _ = await cluster.database.run(access_sql.create_key, "acme", label="laptop", expires_at=None, now=1.0)
        async with asyncio.timeout(300):
            while (await feed.access()).version <= before:
                await asyncio.sleep(0.005)
        assert key.hash in (await feed.access()).keys


async def test_a_watcher_hears_of_its_job_alone(cluster: Cluster) -> None:
    async with following(cluster, 1) as (feed,):
        ids = [(await cluster.call(RegistryApi.submit, submission(number))).job.id for number in range(2)]
        with feed.watch(ids[0]) as change:
            change.clear()
            await cluster.call(RegistryApi.cancel, ids[1])
            heard_of_other = change.is_set()
            await cluster.call(RegistryApi.cancel, ids[0])
            assert change.is_set()
        assert not feed.watched_jobs
        assert not heard_of_other
