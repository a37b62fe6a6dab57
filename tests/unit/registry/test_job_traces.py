"""The history of an ended job as spans; what a killed replica leaves of its own."""

import pytest

from deployments.messages import Failed, Parked, Stage, Started
from deployments.tracing.context import new_context
from serve_app.jobs import JobState, Submission
from serve_app.registry.job_traces import spans_of
from tests.support.registry.world import SPEC, World
from tests.support.tracing.spans import named, traced
from tests.support.waiting import until

JOB = f"video_{'1' * 32}"


async def submit(world: World) -> None:
    context = new_context(JOB, None, 1.0)
    await world.registry.submit(Submission(JOB, "mochi-1", SPEC, traceparent=context.traceparent))


async def test_a_lease_tells_of_the_replica_that_failed(world: World) -> None:
    with traced() as spans:
        await world.replicas(stages=[Stage.ENCODING])
        await submit(world)
        call = await world.workers.next()
        await world.report(call, Started("replica-1", "cpu"))
        await world.report(call, Failed("device_out_of_memory", "no memory", transient=True))
        call.ended.set_result(None)
        again = await world.workers.next()
        assert again.task.traceparent != call.task.traceparent
        await world.registry.cancel(JOB)
        await until(lambda: named(spans, "job"))
    (dispatch,) = named(spans, "dispatch")
    assert dispatch.attributes["mochi_serve.replica"] == "replica-1"
    first, second = named(spans, "lease of encoding")
    assert dispatch.parent_id == first.context.span_id
    assert (first.error, second.error) == ("device_out_of_memory", None)
    assert first.attributes["mochi_serve.end"] == "device_out_of_memory: no memory"
    (job,) = named(spans, "job")
    assert (job.error, job.attributes["mochi_serve.state"]) == ("cancelled", "cancelled")


async def test_a_restarted_registry_tells_the_whole_of_it(world: World) -> None:
    with traced() as spans:
        await world.replicas(stages=[Stage.ENCODING])
        await submit(world)
        await world.workers.next()
        await world.stop()
        world.start()
        await world.registry.cancel(JOB)
        await until(lambda: named(spans, "job"))
    assert [span.name for span in spans if span.name not in ("accept", "dispatch")] == [
        "job",
        "wait for encoding",
        "lease of encoding",
    ]


async def test_a_job_that_is_cancelled_twice_is_told_once(world: World) -> None:
    with traced() as spans:
        await submit(world)
        await world.registry.cancel(JOB)
        await world.registry.cancel(JOB)
        await world.stop()
    assert len(named(spans, "job")) == 1
    world.start()


async def test_of_one_that_is_not_kept_nothing_is_told(world: World) -> None:
    with traced() as spans:
        await world.submit(JOB)
        await world.registry.cancel(JOB)
        await world.stop()
    assert spans == []
    world.start()


async def test_of_a_deleted_job_the_job_itself_is_told(world: World) -> None:
    with traced() as spans:
        await submit(world)
        assert await world.registry.delete(JOB, None)
        await until(lambda: named(spans, "job"))
    assert [span.name for span in spans] == ["accept", "job"]


async def test_a_clock_that_is_set_back_makes_no_span_end_before_it_begins(world: World) -> None:
    await submit(world)
    world.clock_shift_s = -100
    await world.registry.cancel(JOB)
    job = await world.reaches(JOB, JobState.CANCELLED)
    moves = await world.registry.history(JOB)
    assert moves is not None
    assert all(span.end_ns >= span.start_ns for span in spans_of(job, moves))


@pytest.mark.parametrize("reason", ["the registry asked for it", "the replica was told to leave"])
async def test_a_park_is_no_error(world: World, reason: str) -> None:
    with traced() as spans:
        await world.replicas(stages=[Stage.ENCODING, Stage.SAMPLING])
        await submit(world)
        await world.finish(await world.workers.next())
        call = await world.workers.next()
        await world.report(call, Parked(3, reason))
        call.ended.set_result(None)
        await world.workers.next()
        await world.registry.cancel(JOB)
        await until(lambda: named(spans, "job"))
    parked, _ = named(spans, "lease of sampling")
    assert parked.error is None and parked.attributes["mochi_serve.end"] == f"parked at step 3: {reason}"
