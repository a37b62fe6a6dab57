"""Two registries on one database: jobs that both might run, leases that one lets lapse, and an end by the other."""

import asyncio
from collections.abc import Iterator

import pytest

from deployments.messages import Directive, Stage, Started
from serve_app.feed.read_leases import FeedTiming, PresenceTiming
from serve_app.jobs import JobState
from serve_app.registry.timing import DeadlineTiming, RegistryTiming
from tests.support.registry.world import SETTINGS, Call, World
from tests.support.servers.postgres import fresh_database

ENCODER = (Stage.ENCODING,)


@pytest.fixture
def url(postgres_uri: str) -> Iterator[str]:
    """An empty database that registries may share; SQLite is for one alone."""
    with fresh_database(postgres_uri) as made:
        yield made


async def test_two_registries_on_one_database_never_run_a_job_twice(url: str) -> None:
    settings = SETTINGS.model_copy(update={"lease_s": 2.0})
    old, new = World(url, settings, owner="old"), World(url, settings, owner="new")
    old.start()
    new.start()
    for n in range(20):
        await (old if n % 2 else new).submit(f"{n:02}")
    for world in (old, new):
        await world.replicas(slots=20, stages=ENCODER)
    seen: dict[str, Call] = {}
    async with asyncio.timeout(300):
        while len(seen) < 20:
            for world in (old, new):
                await world.replicas(slots=20, stages=ENCODER)
                while not world.workers.sent.empty():
                    call = await world.workers.next()
                    assert seen.setdefault(call.task.job_id, call) is call
                    assert await world.report(call, Started("r", "cpu")) is Directive.CONTINUE
            await asyncio.sleep(0.05)
    await new.stop()
    await old.stop()


async def test_a_new_cluster_takes_over_what_the_old_one_lets_lapse(url: str) -> None:
    settings = SETTINGS.model_copy(update={"lease_s": 1.5})
    # Else the first writes of a registry that arrives would be confirmed later than a lease lapses.
    timing = RegistryTiming(feed=FeedTiming(valid_s=0.05), presence=PresenceTiming(exclusive_s=0.1))
    old = World(url, settings, owner="old", timing=timing)
    new = World(url, settings, owner="new", timing=timing)
    old.start()
    await old.replicas(stages=ENCODER)
    await old.submit("a")
    await old.submit("b")
    held = await old.workers.next()
    new.start()
    await old.stop()
    waiting = await new.next_after_loss(slots=2)
    assert (waiting.task.job_id, waiting.task.attempt) == ("b", 1)
    async with asyncio.timeout(300):
        while new.workers.sent.empty():
            assert await new.report(waiting, Started("r", "cpu")) is Directive.CONTINUE
            await asyncio.sleep(0.05)
    again = await new.workers.next()
    assert (again.task.job_id, again.task.attempt) == ("a", 2)
    assert again.task.lease != held.task.lease
    await new.stop()


async def test_a_job_cancelled_through_another_registry_stops_here(url: str) -> None:
    one, other = World(url, owner="one"), World(url, owner="other")
    one.start()
    other.start()
    await one.replicas(stages=ENCODER)
    await one.submit("a")
    call = await one.workers.next()
    assert await one.report(call, Started("r", "cpu")) is Directive.CONTINUE
    await other.registry.cancel("a")
    async with asyncio.timeout(300):
        while await one.report(call, Started("r", "cpu")) is not Directive.STOP:
            await asyncio.sleep(0.05)
    await one.stop()
    await other.stop()


async def test_a_deadline_is_kept_by_whichever_registry_is_there(url: str) -> None:
    timing = RegistryTiming(deadlines=DeadlineTiming(longest_pause_s=0.05))
    one, other = World(url, owner="one", timing=timing), World(url, owner="other", timing=timing)
    one.start()
    await one.replicas(stages=ENCODER)
    await one.submit("a", cancel_after_s=3600.0)
    await one.submit("b", cancel_after_s=3600.0)
    call = await one.workers.next()
    assert await one.report(call, Started("encoding-replica", "cpu")) is Directive.CONTINUE
    other.clock_shift_s = 3600.0
    other.start()
    codes = {}
    for job_id in "ab":
        job = await other.reaches(job_id, JobState.CANCELLED)
        codes[job_id] = job.error and job.error.code
    assert codes == {"a": "deadline_not_ready", "b": "deadline_not_started"}
    async with asyncio.timeout(300):
        while await one.report(call, Started("encoding-replica", "cpu")) is not Directive.STOP:
            await asyncio.sleep(0.05)
    await one.stop()
    await other.stop()
