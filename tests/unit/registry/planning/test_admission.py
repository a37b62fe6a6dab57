"""Which new jobs a registry takes: tenants with limits, many requests at once, what was used before."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import RegistryUnavailableError
from deployments.messages import VIDEO_STAGES, Progress, ReplicaInfo, Stage
from serve_app.access.tenants import day_of
from serve_app.config import SchedulingSettings
from serve_app.database import access as access_sql
from serve_app.database.connection import Database
from serve_app.database.jobs.intake import insert_job
from serve_app.errors import ApiError, QueueFullError, RateLimitError, TooLargeError
from serve_app.feed.read_leases import PresenceTiming
from serve_app.jobs import Acceptance, Job, JobState, Submission
from serve_app.registry.planning.admission import AdmissionControl
from serve_app.registry.planning.queue_estimates import QueueEstimates
from serve_app.registry.state import RegistryState
from serve_app.registry.timing import RegistryTiming
from serve_app.scheduling.estimates import CostModel
from serve_app.scheduling.scaling.capacity import StageState
from tests.support.registry.world import SETTINGS, SPEC, World

ACME = "acme"


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[RegistryState]:
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    yield RegistryState(database, SETTINGS, SchedulingSettings(weights={"globex": 3.0}), "here")
    database.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = SETTINGS.model_copy(update={"max_queued": 50})
    made = World(f"sqlite:///{tmp_path / 'jobs.db'}", settings, SchedulingSettings(weights={"globex": 3.0}))
    made.start()
    yield made
    await made.stop()


def submission(number: int, tenant: str = ACME, key: str | None = None, **spec: Any) -> Submission:
    return Submission(f"video_{number:032x}", "mochi-1", replace(SPEC, **spec), tenant, idempotency_key=key)


async def limit(world: World, tenant: str = ACME, **limits: Any) -> None:
    """Set the tenant's limits; returns when the registry knows them."""
    made = await world.database.run(access_sql.set_tenant, tenant, changes=limits, now=1.0)
    async with asyncio.timeout(300):
        while world.registry.snapshot().state.access.tenants.get(tenant) != made:
            await asyncio.sleep(0.01)


async def at_once(world: World, count: int, tenant: str = ACME) -> tuple[list[Acceptance], list[ApiError]]:
    asked = (world.registry.submit(submission(number, tenant)) for number in range(count))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, ApiError)]
    accepted = [answer for answer in answers if isinstance(answer, Acceptance)]
    assert len(accepted) + len(refused) == count
    return accepted, refused


def estimated_cost_s() -> float:
    """GPU-seconds of one job, as long as nothing was measured."""
    return sum(CostModel().estimate(stage, SPEC, SPEC.num_inference_steps) for stage in VIDEO_STAGES)


async def use(world: World, gpu_seconds: float, ago_days: int = 0, tenant: str = ACME) -> None:
    at = time.time() - ago_days * 86_400
    await world.database.run(access_sql.record_usage, tenant, ended_at=at, gpu_seconds=gpu_seconds)


async def test_of_many_at_once_no_more_wait_than_may(world: World) -> None:
    await limit(world, max_queued=5)
    accepted, refused = await at_once(world, 40)
    assert len(accepted) == 5
    assert {type(error) for error in refused} == {QueueFullError}
    assert {error.code for error in refused} == {"tenant_queue_full"}


async def test_nor_do_they_where_what_was_used_has_to_be_read_before(world: World) -> None:
    await limit(world, max_queued=5, gpu_seconds_per_day=1e9)
    accepted, refused = await at_once(world, 40)
    assert len(accepted) == 5
    assert {error.code for error in refused} == {"tenant_queue_full"}


async def test_the_bound_of_the_server_counts_all_tenants(world: World) -> None:
    await limit(world, max_queued=1000, gpu_seconds_per_day=1e9)
    asked = (world.registry.submit(submission(number, (ACME, "other")[number % 2])) for number in range(120))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, Acceptance) for answer in answers) == 50
    assert {answer.code for answer in answers if isinstance(answer, ApiError)} == {"queue_full"}


async def test_of_many_at_once_no_more_are_made_a_minute(world: World) -> None:
    await limit(world, videos_per_minute=7, gpu_seconds_per_day=1e9)
    accepted, refused = await at_once(world, 40)
    assert len(accepted) == 7
    assert {error.code for error in refused} == {"rate_limit_exceeded"}
    assert (await world.registry.submit(submission(100, "other"))).job.state is JobState.QUEUED


async def test_of_many_at_once_no_more_are_booked_than_the_day_has(world: World) -> None:
    one = estimated_cost_s()
    await limit(world, gpu_seconds_per_day=3.5 * one)
    accepted, refused = await at_once(world, 40)
    assert len(accepted) == 3
    assert {error.code for error in refused} == {"insufficient_quota"}


async def test_what_was_used_today_counts(world: World) -> None:
    one = estimated_cost_s()
    await limit(world, gpu_seconds_per_day=3.5 * one)
    await use(world, 2 * one)
    await use(world, 100 * one, ago_days=1)
    await use(world, 100 * one, tenant="other")
    assert len((await at_once(world, 10))[0]) == 1


async def test_what_was_cancelled_is_booked_no_more(world: World) -> None:
    one = estimated_cost_s()
    await limit(world, gpu_seconds_per_day=1.5 * one)
    job = (await world.registry.submit(submission(1))).job
    with pytest.raises(RateLimitError):
        await world.registry.submit(submission(2))
    await world.registry.cancel(job.id)
    await world.registry.submit(submission(3))


@pytest.mark.parametrize("end", ["cancel", "delete"])
async def test_what_was_used_until_a_cancel_is_counted(world: World, end: str) -> None:
    """Also what the replica has told since the job's row was saved last, and no second time."""
    await world.replicas()
    await world.encoded("video_1", tenant=ACME)
    call = await world.workers.next()
    for done, device_s in ((5, 2.0), (9, 4.5)):
        await world.report(call, Progress(done, SPEC.num_inference_steps, device_s=device_s))
    before = (await world.job("video_1")).device_s
    await (world.registry.cancel("video_1") if end == "cancel" else world.registry.delete("video_1", ACME))
    used = await world.database.run(access_sql.day_usage, ACME, day=day_of(time.time()))
    assert used.videos == 1
    assert used.gpu_seconds == pytest.approx(0.2 + 4.5)
    assert before == pytest.approx(0.2)
    if end == "cancel":
        job = await world.job("video_1")
        assert job.steps_run == 9
        assert job.device_s == pytest.approx(4.7)


async def test_steps_that_are_done_are_booked_as_they_were_spent(state: RegistryState) -> None:
    """A job that is half done books what it took and what is left, in its stage and the ones after it."""
    admission = AdmissionControl(state, QueueEstimates(state))
    waiting = Job("video_1", "mochi-1", SPEC, JobState.QUEUED, Stage.SAMPLING, 1, 0.0, tenant=ACME, device_s=0.2)
    state.update_job(waiting)
    steps = SPEC.num_inference_steps
    whole = state.costs.estimate(Stage.SAMPLING, SPEC, steps) + state.costs.estimate(Stage.DECODING, SPEC, steps)
    assert admission.booked_s(ACME) == pytest.approx(0.2 + whole)
    assert admission.booked_s("other") == 0
    sampling = replace(waiting, state=JobState.SAMPLING, lease="token", moves=2)
    state.update_job(sampling)
    lease = state.leases.grant(sampling, now=0.0)
    async with lease.saving():
        lease.report(steps - 1, device_s=0.0)
    left = state.costs.estimate(Stage.SAMPLING, SPEC, 1) + state.costs.estimate(Stage.DECODING, SPEC, steps)
    assert admission.booked_s(ACME) == pytest.approx(0.2 + left)


async def test_a_refused_request_takes_none_of_the_minutes_share(world: World) -> None:
    await limit(world, videos_per_minute=2, max_queued=1)
    first = (await world.registry.submit(submission(1))).job
    for number in range(2, 6):
        with pytest.raises(QueueFullError):
            await world.registry.submit(submission(number))
    await world.registry.cancel(first.id)
    await world.registry.submit(submission(7))


async def test_what_was_accepted_stays_accepted(world: World) -> None:
    await limit(world, max_queued=1)
    first = await world.registry.submit(submission(1, key="again"))
    again = await world.registry.submit(submission(2, key="again"))
    assert (again.job.id, again.repeated) == (first.job.id, True)
    with pytest.raises(QueueFullError):
        await world.registry.submit(submission(3, key="another"))


async def test_a_key_of_one_tenant_is_nothing_to_another(world: World) -> None:
    first = await world.registry.submit(submission(1, key="same"))
    other = await world.registry.submit(submission(2, "globex", key="same"))
    assert (other.repeated, other.job.tenant) == (False, "globex")
    assert first.job.id != other.job.id


async def test_what_fits_no_sampler_is_refused_before_anything_is_counted(world: World) -> None:
    await limit(world, videos_per_minute=1)
    small = SPEC.clip.tokens
    info = ReplicaInfo("sampling-replica", Stage.SAMPLING, 0, "cpu", "mochi-1", max_tokens=small)
    await world.registry.announce(info, wait=False)
    with pytest.raises(TooLargeError):
        await world.registry.submit(submission(1, width=2 * SPEC.width))
    await world.registry.submit(submission(2))


async def test_nothing_of_a_tenant_stays_in_memory_but_its_jobs(world: World) -> None:
    await asyncio.gather(*(world.registry.submit(submission(n, f"tenant-{n}")) for n in range(20)))
    snapshot = world.registry.snapshot()
    assert (snapshot.reserved_s, snapshot.state.waiting.reserved) == ({}, {})


async def test_a_database_that_fails_leaves_nothing_counted(world: World) -> None:
    await limit(world, max_queued=1, gpu_seconds_per_day=1e9)
    world.faults.take_away(insert_job)
    for number in range(3):
        with pytest.raises(RegistryUnavailableError):
            await world.registry.submit(submission(number))
    world.faults.errors.clear()
    await world.registry.submit(submission(9))


async def test_limits_hold_from_the_first_request_after_a_restart(world: World) -> None:
    await limit(world, max_queued=2)
    for number in range(2):
        await world.registry.submit(submission(number))
    await world.restart()
    with pytest.raises(QueueFullError):
        await world.registry.submit(submission(3))


async def test_limits_are_known_before_anything_is_accepted(world: World) -> None:
    """The jobs are known again, and the tenants cannot be read yet: nobody is let through as if without limits."""
    await limit(world, max_queued=1)
    await world.registry.submit(submission(0))
    world.faults.take_away(access_sql.load_access)
    world.timing = RegistryTiming(presence=PresenceTiming(beat_every_s=0.01))
    await world.restart()
    asking = asyncio.create_task(world.registry.submit(submission(1)))
    await world.registry.capacity(StageState(Stage.SAMPLING, 0, 1, 0, 1))  # it has taken over its jobs
    world.faults.errors.clear()
    with pytest.raises(QueueFullError):
        await asking


async def test_a_tenants_weight_is_that_of_its_account(state: RegistryState) -> None:
    async def change(tenant: str, **changes: Any) -> None:
        await state.database.run(access_sql.set_tenant, tenant, changes=changes, now=1.0)
        state.access = await state.database.run(access_sql.load_access)

    assert (state.weight("globex"), state.weight(ACME)) == (3.0, 1.0)
    await change("globex", max_queued=4)
    assert state.weight("globex") == 3.0
    await change("globex", weight=0.25)
    await change(ACME, weight=5.0)
    assert (state.weight("globex"), state.weight(ACME)) == (0.25, 5.0)


async def test_the_day_of_usage_is_the_one_of_the_request(world: World) -> None:
    one = estimated_cost_s()
    await limit(world, gpu_seconds_per_day=1.5 * one)
    await use(world, one)
    with pytest.raises(RateLimitError):
        await world.registry.submit(submission(1))
    world.clock_shift_s = 86_400.0
    await world.registry.submit(submission(2))
