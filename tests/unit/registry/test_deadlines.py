"""Jobs that are not completed by their deadlines: waiting, running, across restarts, outages and jumps of the clock."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.messages import VIDEO_STAGES, Directive, Progress, ReplicaInfo, Stage, Started
from serve_app.database.jobs import deadlines as deadlines_sql
from serve_app.feed.publisher import Cursor
from serve_app.jobs import Job, JobState
from serve_app.registry.timing import DeadlineTiming, RegistryTiming
from tests.support.registry.world import Call, World

HOUR_S = 3600.0
ENCODER = (Stage.ENCODING,)
# It looks often: the clock of these tests jumps. FOREVER: it looks only when it knows of a deadline.
TIMING = RegistryTiming(deadlines=DeadlineTiming(longest_pause_s=0.02, shortest_pause_s=0.01, retry_s=0.02))
FOREVER = RegistryTiming(deadlines=DeadlineTiming(longest_pause_s=1e6, shortest_pause_s=0.01, retry_s=0.02))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", timing=TIMING)
    world.start()
    yield world
    await world.stop()


async def cancelled(world: World, job_id: str, code: str) -> Job:
    job = await world.reaches(job_id, JobState.CANCELLED)
    assert job.error is not None and job.error.code == code
    return job


async def begun(world: World, job_id: str, cancel_after_s: float = HOUR_S) -> Call:
    """A call of an encoder, which has begun the job."""
    await world.replicas(stages=ENCODER)
    await world.submit(job_id, cancel_after_s=cancel_after_s)
    call = await world.workers.next()
    assert await world.report(call, Started("encoding-replica", "cpu")) is Directive.CONTINUE
    return call


async def test_a_waiting_job_is_cancelled_and_leaves_the_queue(world: World) -> None:
    accepted = await world.submit("a", cancel_after_s=HOUR_S)
    assert accepted.cancel_at == accepted.created_at + HOUR_S
    await world.submit("b", cancel_after_s=2 * HOUR_S)
    await world.submit("c")
    world.clock_shift_s = HOUR_S
    job = await cancelled(world, "a", "deadline_not_started")
    assert job.cancel_at == accepted.cancel_at
    assert {(await world.job(job_id)).state for job_id in "bc"} == {JobState.QUEUED}
    assert world.registry.snapshot().state.waiting.job_ids == {"b", "c"}
    await world.replicas()
    assert (await world.workers.next()).task.job_id == "b"


async def test_a_running_job_is_stopped(world: World) -> None:
    call = await begun(world, "a")
    world.clock_shift_s = HOUR_S
    await cancelled(world, "a", "deadline_not_ready")
    info = ReplicaInfo("encoding-replica", Stage.ENCODING, 1, "cpu", "mochi-1")
    assert await world.registry.announce(info, wait=False) == {call.task.lease: Directive.STOP}
    assert await world.report(call, Progress(1, 2)) is Directive.STOP
    assert world.registry.snapshot().state.leases == {}


async def test_a_task_that_no_replica_has_begun_was_not_started(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.submit("a", cancel_after_s=HOUR_S)
    call = await world.workers.next()
    world.clock_shift_s = HOUR_S
    await cancelled(world, "a", "deadline_not_started")
    assert await world.report(call, Started("r", "cpu")) is Directive.STOP


async def test_between_its_stages_a_job_was_started(world: World) -> None:
    await world.finish(await begun(world, "a"))
    world.clock_shift_s = HOUR_S
    await cancelled(world, "a", "deadline_not_ready")


async def test_a_completed_job_stays_completed(world: World) -> None:
    await world.replicas()
    await world.submit("a", cancel_after_s=HOUR_S)
    for _ in VIDEO_STAGES:
        await world.finish(await world.workers.next())
    before = await world.reaches("a", JobState.COMPLETED)
    await world.submit("b", cancel_after_s=HOUR_S)
    world.clock_shift_s = HOUR_S + 60
    await world.reaches("b", JobState.CANCELLED)
    assert await world.job("a") == before


async def test_followers_are_told(world: World) -> None:
    await world.submit("a", cancel_after_s=HOUR_S)
    batch = await world.registry.poll_feed("f", Cursor())
    world.clock_shift_s = HOUR_S
    async with asyncio.timeout(300):
        while not any(change.job.state is JobState.CANCELLED for change in batch.changes):
            batch = await world.registry.poll_feed("f", batch.cursor)
    assert batch.changes[-1].moves[-1].note == "deadline_not_started"


async def test_it_sleeps_until_the_next_deadline_and_wakes_for_a_sooner_one(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", timing=FOREVER)
    world.start()
    await world.submit("far", cancel_after_s=HOUR_S)
    await world.submit("soon", cancel_after_s=0.2)
    await world.submit("sooner", cancel_after_s=0.1)
    await world.reaches("soon", JobState.CANCELLED)
    assert (await world.job("sooner")).state is JobState.CANCELLED
    looks = world.faults.calls[deadlines_sql.due_ids]
    await asyncio.sleep(0.1)
    assert world.faults.calls[deadlines_sql.due_ids] <= looks + 1  # it may not have slept yet
    assert (await world.job("far")).state is JobState.QUEUED
    await world.stop()


async def test_deadlines_outlive_the_registry(world: World) -> None:
    call = await begun(world, "running")
    await world.submit("waiting", cancel_after_s=HOUR_S)
    await world.stop()
    world.clock_shift_s = 2 * HOUR_S
    world.start()
    await cancelled(world, "running", "deadline_not_ready")
    await cancelled(world, "waiting", "deadline_not_started")
    assert await world.report(call, Progress(1, 2)) is Directive.STOP


@pytest.mark.parametrize("function", [deadlines_sql.due_ids, deadlines_sql.cancel_due, deadlines_sql.next_deadline])
async def test_it_waits_for_a_database_that_is_away(world: World, function: object) -> None:
    await world.submit("a", cancel_after_s=HOUR_S)
    world.faults.take_away(function)
    before = world.faults.calls[function]
    world.clock_shift_s = HOUR_S
    async with asyncio.timeout(300):
        while world.faults.calls[function] < before + 2:
            await asyncio.sleep(0.01)
    world.faults.errors.clear()
    await cancelled(world, "a", "deadline_not_started")


async def test_an_answer_that_is_lost_stops_the_replica_all_the_same(world: World) -> None:
    call = await begun(world, "a")
    world.faults.lost_answers.add(deadlines_sql.cancel_due)
    world.clock_shift_s = HOUR_S
    await cancelled(world, "a", "deadline_not_ready")
    call.ended.set_result(None)
    async with asyncio.timeout(300):
        while world.registry.snapshot().state.leases:
            await asyncio.sleep(0.01)
    assert (await world.job("a")).state is JobState.CANCELLED


async def test_a_clock_that_goes_back_gives_more_time_and_takes_none(world: World) -> None:
    await world.submit("a", cancel_after_s=60)
    world.clock_shift_s = -HOUR_S
    await world.submit("b", cancel_after_s=60)
    world.clock_shift_s = -HOUR_S + 61
    await cancelled(world, "b", "deadline_not_started")
    assert (await world.job("a")).state is JobState.QUEUED
    world.clock_shift_s = 61
    await cancelled(world, "a", "deadline_not_started")
