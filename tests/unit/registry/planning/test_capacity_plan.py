"""What the registry answers the autoscaling policy."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from deployments.messages import VIDEO_STAGES, ReplicaInfo, Stage
from serve_app.config import SchedulingSettings
from serve_app.database.meta import read_start_times, write_start_times
from serve_app.jobs import Tier
from serve_app.scheduling.scaling.capacity import StageNeed, StageState
from tests.support.registry.world import World

NONE = {stage: StageState(stage, target=0, slots=1, minimum=0, maximum=4) for stage in VIDEO_STAGES}
LONG: dict[str, Any] = {"width": 848, "height": 480, "num_frames": 163, "num_inference_steps": 64}  # some ten minutes
SAMPLER = ReplicaInfo("s1", Stage.SAMPLING, 1, "cpu", "mochi-1")


async def test_without_jobs_nothing_is_needed(world: World) -> None:
    assert await world.registry.capacity(NONE[Stage.SAMPLING]) == StageNeed(0, 120.0)


async def test_a_job_that_waits_for_the_encoder_wakes_the_whole_pipeline(world: World) -> None:
    await world.submit("a")
    assert [(await world.registry.capacity(NONE[stage])).replicas for stage in VIDEO_STAGES] == [1, 1, 1]


async def test_urgent_jobs_get_replicas_that_patient_ones_do_not(world: World) -> None:
    for n in range(3):
        await world.submit(f"batch-{n}", tier=Tier.BATCH, **LONG)
    assert (await world.registry.capacity(NONE[Stage.SAMPLING])).replicas == 1
    for n in range(3):
        await world.submit(f"urgent-{n}", tier=Tier.INTERACTIVE, **LONG)
    await asyncio.sleep(0.6)  # what is known is half a second old at most
    assert (await world.registry.capacity(NONE[Stage.SAMPLING])).replicas == 3


async def test_a_busy_replica_is_named_and_stays_needed(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    await world.workers.next()
    need = await world.registry.capacity(replace(NONE[Stage.ENCODING], target=1))
    assert need.replicas == 1 and need.busy == {"encoding-replica"}


async def test_a_replica_with_a_problem_is_made_up_for(world: World) -> None:
    await world.registry.announce(replace(SAMPLER, slots=0, problem="its GPU fell off"), wait=False)
    await world.submit("a")
    assert (await world.registry.capacity(replace(NONE[Stage.SAMPLING], target=1))).replicas == 2


async def test_a_little_work_starts_nothing_below_the_threshold(database_url: str) -> None:
    world = World(database_url, scheduling=SchedulingSettings(activation_gpu_s=1e6))
    world.start()
    await world.submit("a", tier=Tier.BATCH)
    assert (await world.registry.capacity(NONE[Stage.SAMPLING])).replicas == 0
    await world.submit("b", tier=Tier.INTERACTIVE)
    await asyncio.sleep(0.6)
    assert (await world.registry.capacity(NONE[Stage.SAMPLING])).replicas == 1
    await world.stop()


async def test_slots_are_kept_for_urgent_jobs_that_come_often(world: World) -> None:
    for n in range(6):
        job = await world.submit(f"urgent-{n}", tier=Tier.INTERACTIVE)
        await world.registry.cancel(job.id)
    assert [(await world.registry.capacity(NONE[stage])).replicas for stage in VIDEO_STAGES] == [1, 1, 1]
    await world.restart()
    assert (await world.registry.capacity(NONE[Stage.SAMPLING])).replicas == 1


async def test_start_times_are_measured_and_outlive_the_registry(world: World) -> None:
    one = replace(NONE[Stage.SAMPLING], target=1)
    await world.registry.capacity(NONE[Stage.SAMPLING])
    await world.registry.capacity(one)
    await world.registry.announce(SAMPLER, wait=False)
    measured = (await world.registry.capacity(one)).start_s
    assert 0 < measured < 60
    assert (await world.registry.capacity(NONE[Stage.DECODING])).start_s == 120.0
    await world.restart()
    assert (await world.registry.capacity(one)).start_s == measured


async def test_health_tells_when_what_was_asked_for_is_likely_there(world: World) -> None:
    await world.registry.capacity(NONE[Stage.SAMPLING])
    assert (await world.registry.health()).starting == {}
    await world.registry.capacity(replace(NONE[Stage.SAMPLING], target=2))
    (at, also_at) = (await world.registry.health()).starting[Stage.SAMPLING]
    assert at == also_at and abs(at - time.time() - 120) < 60
    await world.registry.announce(SAMPLER, wait=False)
    assert len((await world.registry.health()).starting[Stage.SAMPLING]) == 1


async def test_a_database_that_is_away_keeps_no_answer_back(world: World) -> None:
    world.faults.take_away(read_start_times)
    world.faults.take_away(write_start_times)
    await world.submit("a")
    assert (await world.registry.capacity(NONE[Stage.SAMPLING])).replicas == 1
    await world.registry.capacity(replace(NONE[Stage.SAMPLING], target=1))
    await world.registry.announce(SAMPLER, wait=False)
    assert (await world.registry.capacity(replace(NONE[Stage.SAMPLING], target=1))).start_s < 60
