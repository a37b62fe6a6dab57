"""Ingress replicas that follow a real registry: whoever wrote reads it back at each of them, whatever happens."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import RegistryUnavailableError
from serve_app import access_store
from serve_app.config import SchedulingSettings
from serve_app.job_feed import JobFeed
from serve_app.job_registry import JobRegistry
from serve_app.jobs import Job, JobFilter, JobPage, Submission
from tests.registry_world import SETTINGS, SPEC, Workers

EVERYTHING = JobFilter()


@dataclass
class Cluster:
    """A registry that can be killed and started again, and the way to it as ingress replicas have it.

    stuck: followers whose calls do not come through.
    """

    url: str
    registry: JobRegistry = field(init=False)
    lives: int = 0
    stuck: set[str] = field(default_factory=set)

    def start(self) -> None:
        was_restarted = self.lives > 0
        self.registry = JobRegistry(
            self.url, SETTINGS, SchedulingSettings(), "cluster", Workers(), was_restarted=lambda: was_restarted
        )
        self.lives += 1

    async def restart(self) -> None:
        await self.registry.close()
        self.start()

    async def call(self, method: str, *args: Any) -> Any:
        if method == "follow":
            while args[0] in self.stuck:
                await asyncio.sleep(0.01)
        life = self.lives
        call: Awaitable[Any] = getattr(self.registry, method)(*args)
        answering = asyncio.ensure_future(call)
        while not answering.done():
            await asyncio.wait([answering], timeout=0.05)
            if life != self.lives:
                answering.cancel()
                raise RegistryUnavailableError("the registry was killed")
        return answering.result()


@asynccontextmanager
async def following(cluster: Cluster, count: int) -> AsyncIterator[list[JobFeed]]:
    feeds = [JobFeed(cluster) for _ in range(count)]
    tasks = [asyncio.create_task(feed.run()) for feed in feeds]
    for feed in feeds:
        await until(lambda feed=feed: feed.valid)  # type: ignore[misc]
    yield feeds
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(f"sqlite:///{tmp_path / 'jobs.db'}")
    made.start()
    yield made
    await made.registry.close()


def submission(number: int) -> Submission:
    return Submission(f"video_{number:032x}", "m", SPEC)


async def seen(feed: JobFeed, cluster: Cluster, job_id: str) -> Job | None:
    """As `Services.job` finds it."""
    job: Job | None = feed.get(job_id) or await retried(cluster, "get", job_id)
    return job


async def page(feed: JobFeed, cluster: Cluster) -> JobPage:
    known = feed.page(100, None, "desc", EVERYTHING)
    asked: JobPage = known or await retried(cluster, "list_jobs", 100, None, "desc", EVERYTHING)
    return asked


async def test_what_was_written_is_read_back_at_each_replica(cluster: Cluster) -> None:
    async with following(cluster, 3) as feeds:
        for number in range(20):
            job_id = (await cluster.call("submit", submission(number))).job.id
            for feed in feeds:
                known = feed.get(job_id)
                assert known is not None and known.id == job_id  # without a call of the registry
                assert (await page(feed, cluster)).jobs[0].id == job_id
            await cluster.call("cancel", job_id)
            assert [str(job.state) for feed in feeds if (job := feed.get(job_id))] == 3 * ["cancelled"]
            if number % 2:
                assert await cluster.call("delete", job_id, None)
                assert [feed.get(job_id) for feed in feeds] == [None] * 3
                assert await cluster.call("get", job_id) is None


async def test_histories_come_with_the_feed(cluster: Cluster) -> None:
    async with following(cluster, 1) as (feed,):
        job_id = (await cluster.call("submit", submission(1))).job.id
        await cluster.call("cancel", job_id)
        assert list(feed.moves(job_id) or ()) == await cluster.call("history", job_id)


async def test_a_stuck_replica_does_not_tell_old_news(cluster: Cluster) -> None:
    async with following(cluster, 2) as (good, bad):
        job_id = (await cluster.call("submit", submission(1))).job.id
        await until(lambda: bad.get(job_id) is not None)
        cluster.stuck.add(bad._name)
        await cluster.call("cancel", job_id)
        assert (await seen(good, cluster, job_id)).state == "cancelled"  # type: ignore[union-attr]
        assert (await seen(bad, cluster, job_id)).state == "cancelled"  # type: ignore[union-attr]
        assert bad.get(job_id) is None or bad.get(job_id).state == "cancelled"  # type: ignore[union-attr]
        cluster.stuck.clear()
        await until(lambda: bad.valid)
        assert bad.get(job_id).state == "cancelled"  # type: ignore[union-attr]


async def test_a_restart_of_the_registry_tells_no_old_news(cluster: Cluster) -> None:
    async with following(cluster, 2) as feeds:
        ids = [(await cluster.call("submit", submission(number))).job.id for number in range(5)]
        # The replicas believe what they know for a while; the new registry's writes wait for that.
        cluster.stuck |= {feed._name for feed in feeds}
        await cluster.restart()
        await cluster.call("cancel", ids[0])
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

    async def check(feeds: list[JobFeed], job_id: str, state: str | None) -> None:
        for feed in draw.sample(feeds, 2):
            job = await seen(feed, cluster, job_id)
            assert (None if job is None else str(job.state)) == state
            listed = {job.id for job in (await page(feed, cluster)).jobs}
            assert (job_id in listed) == (state is not None)

    async def write(feeds: list[JobFeed], number: int) -> None:
        job_id = (await retried(cluster, "submit", submission(number))).job.id
        truth[job_id] = "queued"
        await check(feeds, job_id, "queued")
        await asyncio.sleep(draw.random() * 0.2)
        await retried(cluster, "cancel", job_id)
        await check(feeds, job_id, "cancelled")
        truth[job_id] = "cancelled"
        if draw.random() < 0.5:
            assert await retried(cluster, "delete", job_id, None)
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


async def retried(cluster: Cluster, method: str, *args: Any) -> Any:
    while True:
        try:
            return await cluster.call(method, *args)
        except RegistryUnavailableError:
            await asyncio.sleep(0.01)


async def test_new_keys_reach_the_replicas(cluster: Cluster) -> None:
    async with following(cluster, 1) as (feed,):
        before = (await feed.access()).version
        database = cluster.registry._database
        key, _ = await database.run(access_store.create_key, "acme", "laptop", None, 1.0)
        await until(lambda: feed._mirror.access is not None and feed._mirror.access.version > before)
        assert key.hash in (await feed.access()).keys


async def test_a_watcher_hears_of_its_job_alone(cluster: Cluster) -> None:
    async with following(cluster, 1) as (feed,):
        ids = [(await cluster.call("submit", submission(number))).job.id for number in range(2)]
        with feed.watch(ids[0]) as change:
            change.clear()
            await cluster.call("cancel", ids[1])
            heard_of_other = change.is_set()
            await cluster.call("cancel", ids[0])
            assert change.is_set()
        assert not feed._watchers
        assert not heard_of_other
