"""Single moments at which the registry once lost a job, a count or a slot; the storms meet them only by chance."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import RegistryUnavailableError
from deployments.messages import (
    Checkpointed,
    Directive,
    Finished,
    Parked,
    Progress,
    ReplicaInfo,
    Report,
    Stage,
    Started,
)
from serve_app.config import SchedulingSettings
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.jobs import Tier
from serve_app.registry.timing import DispatchTiming, RegistryTiming
from tests.support.registry.world import SETTINGS, SPEC, Call, World
from tests.support.waiting import until

ENCODER = (Stage.ENCODING,)
SAMPLER = (Stage.SAMPLING,)


# Comparisons with SQL come often; each report of progress is saved.
TIMING = RegistryTiming(dispatch=DispatchTiming(reconcile_s=0.1), saves_per_lease=1e9)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = SETTINGS.model_copy(update={"lease_s": 20.0})
    scheduling = SchedulingSettings(promote_after_s=1)
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", settings, scheduling, timing=TIMING)
    world.start()
    yield world
    await world.stop()


async def sampled(world: World, **submit: Any) -> Call:
    await world.replicas(stages=ENCODER)
    await world.encoded(**submit)
    await world.replicas(stages=SAMPLER)
    call = await world.workers.next()
    await world.report(call, Started("sampling-replica", "cpu"))
    return call


async def test_a_claim_that_was_written_and_not_told_is_undone(world: World) -> None:
    world.faults.lost_answers.add(claims_sql.claim)
    await world.submit("a")
    call = await world.next_after_loss()
    assert (call.task.job_id, call.task.attempt) == ("a", 1)


async def test_the_write_that_ends_a_lease_has_what_one_beside_it_could_not_save(world: World) -> None:
    """A worker that gave up its call repeats it, or tells of the end, while the registry still writes."""
    call = await sampled(world, job_id="a")
    world.faults.take_away(claims_sql.renew)
    saving = asyncio.create_task(world.report(call, Progress(done=7, total=SPEC.num_inference_steps, device_s=0.7)))
    await until(lambda: world.faults.calls[claims_sql.renew] > 0)
    await world.report(call, Finished())
    with pytest.raises(RegistryUnavailableError):
        await saving
    job = await world.job(call.task.job_id)
    assert (job.stage, job.steps_run) == (Stage.DECODING, SPEC.num_inference_steps)


async def test_a_lease_whose_end_was_not_told_ends_when_its_job_is_seen_to_wait(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.submit("a")
    encoding = await world.workers.next()
    world.faults.lost_answers.add(ends_sql.finish_stage)
    with pytest.raises(RegistryUnavailableError):
        await world.report(encoding, Finished())
    async with asyncio.timeout(300):
        while world.registry.snapshot().state.waiting.queues[Stage.SAMPLING].job_ids != {"a"}:
            await asyncio.sleep(0.01)
    assert world.registry.snapshot().state.leases == {}  # else it were forecast, and counted, twice
    await world.replicas(stages=SAMPLER)
    sampling = await world.workers.next()
    assert (sampling.task.job_id, sampling.task.stage) == ("a", Stage.SAMPLING)
    assert await world.report(encoding, Finished()) is Directive.STOP
    assert world.registry.snapshot().state.waiting.queues[Stage.ENCODING].unsettled == 0


async def test_no_report_of_a_batch_is_lost_to_the_database_of_another(world: World) -> None:
    await world.replicas(slots=2, stages=ENCODER)
    await world.encoded("a")
    await world.encoded("b")
    await world.replicas(slots=2, stages=SAMPLER)
    calls = [await world.workers.next() for _ in range(2)]
    world.faults.take_away(claims_sql.renew)
    with pytest.raises(RegistryUnavailableError):
        await world.registry.report_all([Report(c.task.job_id, c.task.lease, Progress(3, 20)) for c in calls])
    assert [(await world.job(call.task.job_id)).step for call in calls] == [3, 3]


async def test_what_is_told_late_counts_no_step_twice(world: World) -> None:
    call = await sampled(world, job_id="a")
    for done in (8, 12, 4, 16):
        await world.report(call, Progress(done, 20))
    await world.report(call, Parked(18, "asked"))
    assert (await world.job("a")).steps_run == 18


async def test_seconds_that_could_not_be_saved_are_saved_later(world: World) -> None:
    call = await sampled(world, job_id="a")
    world.faults.take_away(claims_sql.renew)
    failing = asyncio.create_task(world.report(call, Progress(2, 20, device_s=2.0)))
    await asyncio.sleep(0)  # it has begun to save
    del world.faults.errors[claims_sql.renew]
    await world.report(call, Progress(3, 20, device_s=3.0))
    with pytest.raises(RegistryUnavailableError):
        await failing
    await world.report(call, Parked(4, "asked", device_s=4.0))
    assert (await world.job("a")).device_s == pytest.approx(4.2)


async def test_a_replica_that_leaves_takes_no_slot_from_another(world: World) -> None:
    await world.replicas(stages=ENCODER)
    await world.submit("a")
    await world.workers.next()
    await world.submit("b")
    for name, slots in (("encoding-replica", 0), ("another", 1)):
        await world.registry.announce(ReplicaInfo(name, Stage.ENCODING, slots, "cpu", "mochi-1"), wait=False)
    assert (await world.workers.next()).task.job_id == "b"


async def asked_to_yield(world: World, call: Call) -> bool:
    """Whether it is, after the registry had its time to think."""
    for _ in range(20):
        await world.registry.health()
    return await world.report(call, Progress(5, 20)) is Directive.PARK


async def test_nobody_is_parked_for_an_urgent_job_whose_turn_it_is_not(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", scheduling=SchedulingSettings(promote_after_s=0.001))
    world.start()
    call = await sampled(world, job_id="running", tenant="many", tier=Tier.BATCH)
    await world.encoded("overdue", tenant="many", tier=Tier.BATCH)
    await world.encoded("urgent", tenant="few", tier=Tier.INTERACTIVE, num_frames=61)
    assert not await asked_to_yield(world, call)
    await world.stop()


async def test_an_old_job_does_not_take_back_the_slot_it_made_room_with(world: World) -> None:
    call = await sampled(world, job_id="old", tenant="many", tier=Tier.BATCH)
    await asyncio.sleep(2.1)  # it would go with the interactive ones by now
    await world.replicas(stages=(Stage.ENCODING, Stage.SAMPLING))
    await world.encoded("urgent", tenant="few", tier=Tier.INTERACTIVE)
    assert await asked_to_yield(world, call)
    await world.park(call, 15)
    assert (await world.workers.next()).task.job_id == "urgent"


async def test_steps_of_a_checkpoint_are_counted_though_no_progress_was_told(world: World) -> None:
    call = await sampled(world, job_id="a")
    await world.report(call, Checkpointed(7))
    call.ended.set_exception(RuntimeError("killed"))
    again = await world.next_after_loss()
    assert again.task.checkpoint_step == 7
    await world.report(again, Progress(8, 20, begun_at=7))
    await world.finish(again)
    assert (await world.job("a")).steps_run == 20
