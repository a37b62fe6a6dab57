"""What a job is told of its start and end while replicas are on their way."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.messages import VIDEO_STAGES, Finished, Progress, ReplicaInfo, Stage
from serve_app.config import SchedulingSettings
from serve_app.database.connection import Database
from serve_app.jobs import Job, Place, Submission
from serve_app.registry.planning.queue_estimates import QueueEstimates
from serve_app.registry.state import RegistryState
from serve_app.scheduling.scaling.capacity import StageState
from tests.support.registry.world import SETTINGS, SPEC, World

STEPS = SPEC.num_inference_steps  # of a second each
START_S = {Stage.ENCODING: 10.0, Stage.SAMPLING: 90.0, Stage.DECODING: 20.0}
SLACK_S = 5.0  # the machine may be slow


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[RegistryState]:
    """Of a cluster at zero, whose times were measured."""
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    made = RegistryState(database, SETTINGS, SchedulingSettings(), "here")
    for stage, device_s in zip(VIDEO_STAGES, (0.1, float(STEPS), 0.1), strict=True):
        made.costs.observe(stage, SPEC, STEPS if stage is Stage.SAMPLING else 0, device_s)
        made.wanted[stage] = StageState(stage, target=0, slots=1, minimum=0, maximum=4)
    made.start_times.restore(START_S)
    yield made
    database.close()


def accept(state: RegistryState, job_id: str) -> Job:
    job = Submission(job_id, "mochi-1", SPEC).accepted(state.unix_time())
    state.update_job(job)
    return job


def told(state: RegistryState, job: Job) -> tuple[float, float]:
    """Seconds from now until it starts and ends."""
    place = QueueEstimates(state).place(job)
    assert place is not None and place.starts_at is not None and place.finishes_at is not None
    now = state.unix_time()
    return place.starts_at - now, place.finishes_at - now


async def test_a_job_at_zero_is_told_when_it_will_start_and_end(state: RegistryState) -> None:
    jobs = [accept(state, name) for name in "ab"]
    assert told(state, jobs[0]) == pytest.approx((90, 110), abs=SLACK_S)
    assert told(state, jobs[1]) == pytest.approx((110, 130), abs=SLACK_S)


async def test_what_was_asked_for_is_there_so_much_sooner(state: RegistryState) -> None:
    jobs, now = [accept(state, name) for name in "abc"], time.monotonic()
    state.start_times.set_target(Stage.SAMPLING, 0, 0, now - 100)
    state.start_times.set_target(Stage.SAMPLING, 2, 0, now - 60)
    state.wanted[Stage.SAMPLING] = StageState(Stage.SAMPLING, target=2, slots=1, minimum=0, maximum=4)
    for job, times in zip(jobs, ((30, 50), (30, 50), (50, 70)), strict=True):
        assert told(state, job) == pytest.approx(times, abs=SLACK_S)


async def test_a_late_replica_is_waited_for_only_where_there_is_none(state: RegistryState) -> None:
    jobs, now = [accept(state, name) for name in "ab"], time.monotonic()
    state.start_times.set_target(Stage.SAMPLING, 0, 0, now - 1000)
    state.start_times.set_target(Stage.SAMPLING, 1, 0, now - 1000)
    assert told(state, jobs[0]) == pytest.approx((10, 30), abs=SLACK_S)  # when the encoder is there
    for stage in VIDEO_STAGES:
        state.replicas.announce(ReplicaInfo(f"{stage}#1", stage, 1, "cpu", "mochi-1"), now)
    assert told(state, jobs[1]) == pytest.approx((20, 40), abs=SLACK_S)


@pytest.mark.parametrize("target", [1, None])
async def test_replicas_of_which_nothing_is_known_are_not_waited_for(state: RegistryState, target: int | None) -> None:
    """Serve has one that did not show itself yet, as after a restart of the registry, or was never heard."""
    del state.wanted[Stage.SAMPLING]
    if target is not None:
        state.wanted[Stage.SAMPLING] = StageState(Stage.SAMPLING, target=target, slots=1, minimum=0, maximum=4)
    job = accept(state, "a")
    assert QueueEstimates(state).place(job) == Place(0, None, None)


async def test_nor_are_those_that_a_little_work_does_not_start(state: RegistryState) -> None:
    state.scheduling = SchedulingSettings(activation_gpu_s=100)
    assert QueueEstimates(state).place(accept(state, "a")) == Place(0, None, None)


async def test_the_answer_to_a_request_tells_it_once_the_policy_was_heard(world: World) -> None:
    await world.replicas()
    await world.encoded("first")
    sampling = await world.workers.next()
    await world.report(sampling, Progress(STEPS, STEPS, device_s=float(STEPS)))
    await world.report(sampling, Finished({"denoise": float(STEPS)}, device_s=float(STEPS)))
    sampling.ended.set_result(None)
    for stage in VIDEO_STAGES:  # they are told to leave
        await world.registry.announce(ReplicaInfo(f"{stage}-replica", stage, 0, "cpu", "mochi-1"), wait=False)
        await world.registry.capacity(StageState(stage, target=0, slots=1, minimum=0, maximum=4))
    place = (await world.submit("a")).place
    assert place is not None and place.starts_at is not None and place.finishes_at is not None
    assert place.starts_at - time.time() == pytest.approx(SchedulingSettings().replica_start_s, abs=60)
    assert place.finishes_at > place.starts_at
