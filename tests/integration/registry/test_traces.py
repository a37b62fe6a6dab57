"""One trace from the request to the last stage, through a registry on SQL and real replicas, in one process."""

import asyncio
from pathlib import Path

import pytest

from deployments.messages import VIDEO_STAGES, Stage
from deployments.tracing.context import TraceContext, new_context
from deployments.tracing.span import FinishedSpan
from serve_app.jobs import JobState, Submission
from tests.support.tracing.spans import named, traced
from tests.support.workers.fakes import spec
from tests.support.workers.pipeline import Pipeline

JOB = f"video_{'1' * 32}"
VIDEO = spec("a red circle moving right", width=32, height=32, num_frames=7, num_inference_steps=60)
CLIENT = TraceContext("c" * 32, "d" * 16, True)


async def parked_and_moved(url: str) -> None:
    """A job whose sample is parked, and goes on in another replica."""
    pipeline = Pipeline(url)
    pipeline.start(*VIDEO_STAGES)
    try:
        context = new_context(JOB, CLIENT, 0)
        await pipeline.registry.submit(Submission(JOB, "mochi-1", VIDEO, traceparent=context.traceparent))
        await pipeline.until(JOB, lambda job: job.step >= 3)
        pipeline.hold(Stage.SAMPLING)
        assert await pipeline.registry.park(JOB)
        await pipeline.until(JOB, lambda job: job.parks == 1)
        pipeline.start(Stage.SAMPLING)
        await pipeline.until(JOB, lambda job: job.state is JobState.COMPLETED)
    finally:
        await pipeline.close()


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> list[FinishedSpan]:
    with traced() as kept:
        asyncio.run(parked_and_moved(f"sqlite:///{tmp_path_factory.mktemp('traces') / 'jobs.db'}"))
    return kept


def test_all_are_of_the_client_s_trace_and_have_a_parent(spans: list[FinishedSpan]) -> None:
    request = new_context(JOB, CLIENT, 0)
    assert {span.context.trace_id for span in spans} == {CLIENT.trace_id}
    ids = [span.context.span_id for span in spans]
    assert len(ids) == len(set(ids))
    # That of the request is the ingress's, which is not here.
    assert {span.parent_id for span in spans} <= {*ids, request.span_id}
    assert {span.name for span in spans if span.parent_id == request.span_id} == {"accept", "job"}


def test_waits_and_leases_lie_end_to_end(spans: list[FinishedSpan]) -> None:
    (job,) = named(spans, "job")
    parts = sorted(
        (span for span in spans if span.parent_id == job.context.span_id), key=lambda span: (span.start_ns, span.end_ns)
    )
    stages = ("encoding", "sampling", "sampling", "decoding")
    assert [part.name for part in parts] == [f"{what} {s}" for s in stages for what in ("wait for", "lease of")]
    ends = [job.start_ns, *(part.end_ns for part in parts)]
    assert [part.start_ns for part in parts] == ends[:-1] and ends[-1] == job.end_ns
    assert job.attributes["mochi_serve.state"] == "completed" and job.error is None
    assert not any(part.error for part in parts)


def test_each_stretch_lies_in_its_lease(spans: list[FinishedSpan]) -> None:
    for name, stage, count in (("encode", "encoding", 1), ("sample", "sampling", 2), ("decode", "decoding", 1)):
        stretches, leases = named(spans, name), named(spans, f"lease of {stage}")
        assert [stretch.parent_id for stretch in stretches] == [lease.context.span_id for lease in leases]
        assert len(stretches) == count
        dispatches = [span for span in named(spans, "dispatch") if span.parent_id in {s.parent_id for s in stretches}]
        assert len(dispatches) == count


def test_parks_and_resumes_are_told_with_their_steps(spans: list[FinishedSpan]) -> None:
    first, second = named(spans, "sample")
    asked, parked = [event for event in first.events if event.name in ("yield asked", "parked")]
    assert asked.attributes["mochi_serve.reason"] == "the registry asked for it"
    (resumed,) = [event for event in second.events if event.name == "resumed"]
    step = parked.attributes["mochi_serve.step"]
    assert resumed.attributes["mochi_serve.step"] == step
    # Each run goes on where the one before ended; on a slow machine there are more checkpoints than that of the park.
    runs = named(spans, "steps")
    begins = [run.attributes["mochi_serve.step.from"] for run in runs]
    ends = [run.attributes["mochi_serve.step.to"] for run in runs]
    assert begins == [0, *ends[:-1]] and ends[-1] == VIDEO.num_inference_steps and step in ends
    before = ends.index(step) + 1
    parents = [first.context.span_id] * before + [second.context.span_id] * (len(runs) - before)
    assert [run.parent_id for run in runs] == parents


def test_reads_and_writes_of_the_store_are_parts_of_their_stretch(spans: list[FinishedSpan]) -> None:
    stretches = {
        span.context.span_id: span.name for name in ("encode", "sample", "decode") for span in named(spans, name)
    }
    done = [(stretches[span.parent_id or ""], span.name) for span in spans if span.name.startswith("store")]
    assert done.count(("encode", "store put")) == 1
    # Each run of steps ends with a checkpoint, the last one with the latents.
    assert done.count(("sample", "store get")) == 2
    assert done.count(("sample", "store put")) == len(named(spans, "steps")) >= 2
    assert done.count(("decode", "store get")) == 1 and done.count(("decode", "store put")) == 3
    assert all(span.attributes["mochi_serve.object.bytes"] for span in spans if span.name.startswith("store"))


def test_no_prompt_is_told(spans: list[FinishedSpan]) -> None:
    assert "red circle" not in repr(spans)


async def test_without_an_exporter_a_trace_is_passed_on_and_nothing_kept(tmp_path: Path) -> None:
    pipeline = Pipeline(f"sqlite:///{tmp_path / 'jobs.db'}")
    try:
        await pipeline.registry.submit(Submission(JOB, "mochi-1", VIDEO, traceparent=CLIENT.traceparent))
        job = await pipeline.registry.get(JOB)
        assert job is not None and job.trace == CLIENT
    finally:
        await pipeline.close()
