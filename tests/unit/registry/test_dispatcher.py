"""The order in which jobs go to replicas, and who makes room for whom."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.messages import Directive, Failed, Finished, Parked, Progress, Stage, Started
from serve_app.config import JobSettings, SchedulingSettings
from serve_app.errors import IdempotencyKeyReusedError, QueueFullError
from serve_app.jobs import JobState, Submission, Tier
from serve_app.registry.timing import DispatchTiming, RegistryTiming
from tests.support.registry.world import SPEC, Call, World

ENCODER = (Stage.ENCODING,)
SAMPLER = (Stage.SAMPLING,)


async def sampled(world: World) -> Call:
    call = await world.workers.next()
    assert call.task.stage is Stage.SAMPLING
    await world.report(call, Started("sampling-replica", "cpu"))
    return call


async def order_of_sampling(world: World, count: int) -> list[str]:
    """Run `count` jobs one after the other on one slot."""
    order = []
    await world.replicas(stages=SAMPLER)
    for _ in range(count):
        call = await sampled(world)
        order.append(call.task.job_id)
        await world.finish(call)
        await world.replicas(stages=SAMPLER)
    return order


async def test_tiers_go_before_each_other_and_a_tenant_is_served_in_order(world: World) -> None:
    await world.replicas(stages=ENCODER)
    for job_id, tier in (("b1", Tier.BATCH), ("s1", Tier.STANDARD), ("i1", Tier.INTERACTIVE), ("i2", Tier.INTERACTIVE)):
        await world.encoded(job_id, tier=tier)
    assert await order_of_sampling(world, 4) == ["i1", "i2", "s1", "b1"]


async def test_a_tenant_with_many_jobs_does_not_keep_another_waiting(world: World) -> None:
    await world.replicas(stages=ENCODER)
    for n in range(6):
        await world.encoded(f"many{n}", tenant="many")
    await world.encoded("few", tenant="few")
    assert "few" in (await order_of_sampling(world, 7))[:2]


async def test_shares_follow_the_weights_by_cost(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", scheduling=SchedulingSettings(weights={"a": 3}))
    world.start()
    await world.replicas(stages=ENCODER)
    for n in range(12):
        await world.encoded(f"a{n:02}", tenant="a")
        await world.encoded(f"b{n:02}", tenant="b")
    first = [job_id for job_id in await order_of_sampling(world, 12) if job_id[0] == "a"]
    assert len(first) in (8, 9, 10)
    assert first == [f"a{n:02}" for n in range(len(first))]
    await world.stop()


async def test_an_interactive_job_parks_a_batch_job_which_goes_on_where_it_was(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.encoded("long", tier=Tier.BATCH)
    await world.replicas(stages=SAMPLER)
    long = await sampled(world)
    await world.report(long, Progress(5, 20))
    await world.encoded("urgent", tier=Tier.INTERACTIVE)
    async with asyncio.timeout(300):
        while await world.report(long, Progress(6, 20)) is not Directive.PARK:
            await asyncio.sleep(0.01)
    await world.park(long, 7)
    urgent = await sampled(world)
    assert urgent.task.job_id == "urgent"
    await world.finish(urgent)
    again = await world.workers.next()
    while again.task.stage is not Stage.SAMPLING:
        again = await world.workers.next()
    assert (again.task.job_id, again.task.checkpoint_step, again.task.attempt) == ("long", 7, 1)
    job = await world.job("long")
    assert (job.parks, job.steps_run) == (1, 7)


async def yields(world: World, call: Call, step: int = 5) -> bool:
    """Whether the registry, after it had its time to think, asks this sample to let go."""
    await world.report(call, Progress(step, 20))
    for _ in range(20):
        await world.registry.health()
    return await world.report(call, Progress(step, 20)) is Directive.PARK


@pytest.mark.parametrize(
    ("scheduling", "running", "waiting"),
    [
        (SchedulingSettings(preemption=False), Tier.BATCH, Tier.INTERACTIVE),
        (SchedulingSettings(max_parks=0), Tier.BATCH, Tier.INTERACTIVE),
        (SchedulingSettings(), Tier.INTERACTIVE, Tier.INTERACTIVE),
        (SchedulingSettings(), Tier.BATCH, Tier.STANDARD),
    ],
)
async def test_nobody_is_parked(tmp_path: Path, scheduling: SchedulingSettings, running: Tier, waiting: Tier) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", scheduling=scheduling)
    world.start()
    await world.replicas(stages=ENCODER)
    await world.encoded("first", tier=running)
    await world.replicas(stages=SAMPLER)
    call = await sampled(world)
    await world.encoded("second", tier=waiting)
    assert not await yields(world, call)
    await world.stop()


async def test_as_many_are_parked_as_are_needed_and_the_cheapest(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.encoded("standard", tier=Tier.STANDARD)
    await world.encoded("large", tier=Tier.BATCH, num_frames=61)
    await world.encoded("small", tier=Tier.BATCH)
    await world.replicas(slots=3, stages=SAMPLER)
    calls = {call.task.job_id: call for call in [await sampled(world) for _ in range(3)]}
    await world.encoded("urgent", tier=Tier.INTERACTIVE)
    assert [await yields(world, calls[name]) for name in ("standard", "large", "small")] == [False, False, True]


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["parked", "cancelled"])
async def test_a_slot_whose_call_has_yet_to_end_is_counted_as_open(world: World, is_cancelled: bool) -> None:
    await world.replicas(stages=ENCODER)
    await world.encoded("small", tier=Tier.BATCH)
    await world.encoded("large", tier=Tier.BATCH, num_frames=61)
    await world.replicas(slots=2, stages=SAMPLER)
    small, large = sorted([await sampled(world) for _ in range(2)], key=lambda call: call.task.video.num_frames)
    if is_cancelled:
        await world.registry.cancel("small")
        await world.encoded("urgent", tier=Tier.INTERACTIVE)
    else:
        await world.encoded("urgent", tier=Tier.INTERACTIVE)
        assert await yields(world, small)
        await world.report(small, Parked(6, "room for another"))
    assert not await yields(world, large)
    small.ended.set_result(None)
    assert (await world.workers.next()).task.job_id == "urgent"


async def test_a_slot_whose_call_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", JobSettings(lease_s=1.1))
    world.start()
    await world.replicas(stages=ENCODER)
    await world.encoded("hangs", tier=Tier.BATCH)
    await world.encoded("large", tier=Tier.BATCH, num_frames=61)
    await world.replicas(slots=2, stages=SAMPLER)
    calls = {call.task.job_id: call for call in [await sampled(world) for _ in range(2)]}
    await world.registry.cancel("hangs")
    await world.encoded("urgent", tier=Tier.INTERACTIVE)
    async with asyncio.timeout(300):
        while await world.report(calls["large"], Progress(5, 20)) is not Directive.PARK:
            await asyncio.sleep(0.01)
    await world.stop()


async def test_a_job_at_its_last_step_is_not_parked(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.encoded("nearly", tier=Tier.BATCH)
    await world.replicas(stages=SAMPLER)
    call = await sampled(world)
    await world.report(call, Progress(19, 20))
    await world.encoded("urgent", tier=Tier.INTERACTIVE)
    assert not await yields(world, call, step=19)


async def test_out_of_memory_is_tried_once_more_and_then_told(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.encoded("large")
    await world.replicas(stages=SAMPLER)
    for _ in range(2):
        call = await world.next_after_loss()
        await world.report(call, Failed("out_of_memory", "the device ran out of memory", transient=True))
        call.ended.set_result(None)
    job = await world.reaches("large", JobState.FAILED)
    assert job.error is not None and "smaller size" in job.error.message


async def test_a_job_whose_device_broke_goes_on_elsewhere_with_no_attempt_counted(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.encoded("unlucky")
    await world.replicas(stages=SAMPLER)
    attempts = []
    for _ in range(2):
        call = await world.next_after_loss()
        attempts.append(call.task.attempt)
        await world.report(call, Failed("device_broken", "the device of the replica is broken", transient=True))
        call.ended.set_result(None)
    assert attempts == [1, 1]


async def test_a_registry_that_stood_still_takes_no_lease_away(tmp_path: Path) -> None:
    settings = JobSettings(lease_s=1.1, retry_pause_s=0.01)
    timing = RegistryTiming(dispatch=DispatchTiming(frozen_s=0.1))  # a busy machine lets it stand still too
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", settings, timing=timing)
    world.start()
    await world.replicas(stages=ENCODER)
    await world.submit("a")
    call = await world.workers.next()
    await asyncio.sleep(0.2)
    time.sleep(3)  # nothing on its loop runs, as in a process that was stopped
    await asyncio.sleep(0.2)
    assert await world.report(call, Started("r", "cpu")) is Directive.CONTINUE
    assert (await world.job("a")).attempt == 1
    await world.stop()


async def test_a_full_queue_refuses_before_anything_is_written(tmp_path: Path) -> None:
    settings = JobSettings(max_queued=4, max_queued_per_tenant=3)
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", settings)
    world.start()
    results = await asyncio.gather(*(world.submit(f"a{n}", tenant="a") for n in range(6)), return_exceptions=True)
    assert sum(isinstance(result, QueueFullError) for result in results) == 3
    await world.submit("b0", tenant="b")
    with pytest.raises(QueueFullError) as caught:
        await world.submit("b1", tenant="b")
    assert (caught.value.code, caught.value.headers["Retry-After"]) == ("queue_full", "10")
    assert len((await world.registry.list_jobs(10)).jobs) == 4
    assert (await world.submit("b0", tenant="b")).id == "b0"
    await world.registry.cancel("b0")
    assert (await world.submit("b1", tenant="b")).state is JobState.QUEUED
    await world.stop()


async def test_an_idempotency_key_is_one_job_even_when_the_queue_is_full(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", JobSettings(max_queued=1))
    world.start()
    asked = Submission("a", "mochi-1", SPEC, idempotency_key="k", fingerprint="f")
    first = await world.registry.submit(asked)
    again = await world.registry.submit(replace(asked, job_id="b"))
    assert (first.repeated, again.repeated, again.job.id) == (False, True, "a")
    with pytest.raises(IdempotencyKeyReusedError):
        await world.registry.submit(replace(asked, job_id="c", fingerprint="other"))
    await world.stop()


async def test_a_waiting_job_knows_its_place_and_its_times(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.encoded("a")
    await world.encoded("b")
    await world.replicas(stages=SAMPLER)
    call = await sampled(world)
    await world.report(call, Progress(10, 20, device_s=5.0))
    job = await world.job("b")
    assert job.place is not None and job.place.position == 0
    await world.report(call, Finished(device_s=10.0))
    call.ended.set_result(None)
    other = await sampled(world)
    await world.encoded("c")
    waiting = await world.job("c")
    assert waiting.place is not None and waiting.place.starts_at is not None and waiting.place.finishes_at is not None
    assert 9 < waiting.place.finishes_at - waiting.place.starts_at < 12
    running = await world.job(other.task.job_id)
    assert running.place is not None and running.place.position is None
    assert (await world.job("a")).device_s == pytest.approx(10.2)
