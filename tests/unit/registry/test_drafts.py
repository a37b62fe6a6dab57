"""Which new jobs become drafts: by the wait that is forecast when they are accepted."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.messages import Finished, Progress, ReplicaInfo, Stage
from serve_app.access.tenants import AccessTable, Tenant
from serve_app.config import SchedulingSettings
from serve_app.database.connection import Database
from serve_app.errors import RateLimitError
from serve_app.jobs import Job, Submission, Tier
from serve_app.registry.planning.admission import AdmissionControl
from serve_app.registry.planning.queue_estimates import QueueEstimates
from serve_app.registry.state import RegistryState
from tests.support.registry.world import SETTINGS, SPEC, World

STEPS = SPEC.num_inference_steps  # of a second each
DRAFT = replace(SPEC, quality="draft", num_inference_steps=4)
LIMIT = SchedulingSettings(draft_when_wait_over_s=30)
SAMPLER = ReplicaInfo("s1", Stage.SAMPLING, 1, "cpu", "mochi-1")


def submission(number: int, tenant: str = "acme", tier: Tier = Tier.STANDARD, key: str | None = None) -> Submission:
    return Submission(f"video_{number:032x}", "mochi-1", SPEC, tenant, tier, idempotency_key=key, draft=DRAFT)


class Door:
    """Accepts jobs into the memory of a registry, without SQL's part."""

    def __init__(self, state: RegistryState) -> None:
        self.state = state
        self.admission = AdmissionControl(state, QueueEstimates(state))

    async def accept(self, new: Submission) -> Job:
        decided = await self.admission.decide(new)
        if isinstance(decided, Exception):
            raise decided
        with self.admission.reserving(decided):
            job = decided.accepted(self.state.unix_time())
            self.state.update_job(job)
        return job

    def measure(self) -> None:
        self.state.costs.observe(Stage.ENCODING, SPEC, 0, 0.1)
        self.state.costs.observe(Stage.SAMPLING, SPEC, STEPS, float(STEPS))
        self.state.costs.observe(Stage.DECODING, SPEC, 0, 0.1)

    def sampler(self) -> None:
        self.state.replicas.announce(SAMPLER, time.monotonic())


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[RegistryState]:
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    yield RegistryState(database, SETTINGS, LIMIT, "here")
    database.close()


@pytest.fixture
def door(state: RegistryState) -> Door:
    """One sampler with one slot, and all times are known."""
    made = Door(state)
    made.measure()
    made.sampler()
    return made


async def test_what_would_wait_for_too_long_becomes_a_draft_and_says_why(door: Door) -> None:
    jobs = [await door.accept(submission(number)) for number in range(4)]
    assert [job.spec for job in jobs] == [SPEC, SPEC, DRAFT, DRAFT]
    assert [job.requested.draft is None for job in jobs] == [True, True, False, False]
    reason = jobs[2].requested.draft
    assert reason is not None
    assert reason.wait_s == pytest.approx(2 * STEPS, abs=2)
    assert (reason.limit_s, reason.quality, reason.num_inference_steps) == (30, "exact", STEPS)
    assert reason.guidance_scale == SPEC.guidance_scale
    later = jobs[3].requested.draft
    assert later is not None and later.wait_s == pytest.approx(2 * STEPS + 4, abs=2)


async def test_a_request_that_does_not_allow_it_is_never_cut(door: Door) -> None:
    for number in range(5):
        job = await door.accept(replace(submission(number), draft=None))
        assert (job.spec, job.requested.draft) == (SPEC, None)


async def test_without_the_setting_none_is(door: Door) -> None:
    door.state.scheduling = SchedulingSettings()
    assert [(await door.accept(submission(number))).spec for number in range(5)] == 5 * [SPEC]


async def test_a_tenants_turn_and_tier_are_in_the_forecast(door: Door) -> None:
    door.state.scheduling = SchedulingSettings(draft_when_wait_over_s=50)
    for number in range(5):
        await door.accept(replace(submission(number), draft=None))
    assert (await door.accept(submission(10))).spec == DRAFT
    # The turn of another tenant comes after two of these jobs, and what is urgent goes before all that wait.
    assert (await door.accept(submission(11, "globex"))).spec == SPEC
    assert (await door.accept(submission(12, tier=Tier.INTERACTIVE))).spec == SPEC
    assert (await door.accept(submission(13, tier=Tier.BATCH))).spec == DRAFT


async def test_nothing_measured_is_no_reason(state: RegistryState) -> None:
    door = Door(state)
    door.sampler()
    assert [(await door.accept(submission(number))).spec for number in range(5)] == 5 * [SPEC]


@pytest.mark.parametrize("is_measured", [False, True])
async def test_without_a_sampler_it_is_the_start_that_is_known(state: RegistryState, is_measured: bool) -> None:
    door = Door(state)
    if is_measured:
        door.measure()
    assert (await door.accept(submission(1))).spec == SPEC
    now = time.monotonic()
    state.start_times.set_target(Stage.SAMPLING, 0, 0, now)
    state.start_times.set_target(Stage.SAMPLING, 1, 0, now)
    job = await door.accept(submission(2))
    assert job.spec == DRAFT and job.requested.draft is not None
    assert job.requested.draft.wait_s >= state.scheduling.replica_start_s - 60
    state.start_times.restore({Stage.SAMPLING: 5.0})
    assert (await door.accept(submission(3, "globex", Tier.INTERACTIVE))).spec == SPEC


async def test_it_is_booked_as_what_it_is_made_as(door: Door) -> None:
    poor = Tenant("acme", Tier.STANDARD, "whsec_", 0.0, gpu_seconds_per_day=10.0)
    door.state.access = AccessTable(1, {"acme": poor}, {})
    door.state.scheduling = SchedulingSettings(draft_when_wait_over_s=10)
    await door.accept(submission(1, "globex"))
    with pytest.raises(RateLimitError):
        await door.accept(replace(submission(2), draft=None))
    assert (await door.accept(submission(3))).spec == DRAFT
    assert door.admission.booked_s("acme") < 10


async def test_a_forecast_of_a_long_queue_counts_what_came_since(door: Door) -> None:
    """It is made for several jobs then; each still finds those before it."""
    for number in range(700):
        await door.accept(replace(submission(number, f"tenant-{number % 7}"), draft=None))
    waits = []
    for number in range(1000, 1030):
        job = await door.accept(submission(number, "newcomer"))
        waits.append(0.0 if job.requested.draft is None else job.requested.draft.wait_s)
    assert waits[-1] > 60 and waits[0] < waits[-1]
    assert not door.admission.reserved_s


# Through the whole registry


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """One sampler with one slot, which is free, and the time of its steps is known."""
    world = World(database_url, scheduling=LIMIT)
    world.start()
    await world.replicas()
    await world.encoded("video_first")
    call = await world.workers.next()
    await world.report(call, Progress(STEPS, STEPS, device_s=float(STEPS)))
    await world.report(call, Finished({"denoise": float(STEPS)}, device_s=float(STEPS)))
    call.ended.set_result(None)
    yield world
    await world.stop()


async def test_of_many_at_once_each_finds_those_before_it(world: World) -> None:
    accepted = await asyncio.gather(*(world.registry.submit(submission(number)) for number in range(12)))
    made = [answer.job for answer in accepted]
    assert sorted(job.video.quality for job in made) == 10 * ["draft"] + 2 * ["exact"]
    for job in made:
        assert (await world.job(job.id)).requested == job.requested
        assert (job.requested.draft is None) == (job.spec == SPEC)


async def test_a_repeated_request_is_answered_the_same(world: World) -> None:
    first = (await world.registry.submit(submission(1, key="first"))).job
    for number in range(2, 6):
        await world.registry.submit(submission(number))
    late = (await world.registry.submit(submission(7, key="late"))).job
    assert (first.spec, late.spec) == (SPEC, DRAFT)
    for sent, job in ((submission(8, key="first"), first), (submission(9, key="late"), late), (submission(1), first)):
        again = await world.registry.submit(sent)
        assert again.repeated
        assert (again.job.id, again.job.spec, again.job.requested) == (job.id, job.spec, job.requested)
