"""One trace of a job that was parked, moved and resumed, as a collector gets it from a real server."""

from collections.abc import Iterator

import pytest

from deployments.sampler.step_spans import FROM, TO
from tests.support.servers.server import running_server
from tests.support.tracing import moved_job
from tests.support.tracing.collector import Collector, SentSpan, running_collector
from tests.support.tracing.moved_job import CLIENT, HEADER_NAME, HEADER_VALUE, STEPS, MovedJob

PARKING = ("yield asked", "parked")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def moved(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> MovedJob:
    with running_server(tmp_path_factory.mktemp("traced"), moved_job.settings(collector)) as server:
        return moved_job.make(server, collector)


def named(moved: MovedJob, name: str) -> list[SentSpan]:
    return [span for span in moved.spans if span.name == name]


def test_every_span_has_its_parent(moved: MovedJob) -> None:
    ids = [span.span_id for span in moved.spans]
    assert len(ids) == len(set(ids)), "none was sent twice"
    orphans = [span.name for span in moved.spans if span.parent_id not in {*ids, CLIENT.span_id}]
    assert orphans == []
    assert [span.name for span in moved.spans if span.parent_id == CLIENT.span_id] == ["POST /v1/videos"]


def test_every_part_of_the_server_is_in_it(moved: MovedJob) -> None:
    parts = {"ingress", "registry", "encoder", "sampler", "decoder"}
    assert {span.service for span in moved.spans} == {f"mochi-serve-{part}" for part in parts}
    assert len({span.instance for span in moved.spans if span.service == "mochi-serve-sampler"}) == 2, "it moved"


def test_there_is_no_gap_from_its_acceptance_to_its_end(moved: MovedJob) -> None:
    (job,) = named(moved, "job")
    parts = [span for span in moved.spans if span.parent_id == job.span_id and span.name != "webhook"]
    ends = [job.start_ns, *(part.end_ns for part in parts)]
    assert [part.start_ns for part in parts] == ends[:-1] and ends[-1] == job.end_ns
    stages = ["encoding", "sampling", "sampling", "sampling", "decoding"]
    assert [part.name for part in parts] == [f"{what} {s}" for s in stages for what in ("wait for", "lease of")]


def test_the_park_the_move_and_the_resumes_are_told(moved: MovedJob) -> None:
    yielded, left, last = named(moved, "sample")
    assert [event.name for event in yielded.events if event.name in PARKING] == list(PARKING)
    parks = [event for span in (yielded, left) for event in span.events if event.name == "parked"]
    reasons = ["the registry asked for it", "the replica was told to leave"]
    assert [park.attributes["mochi_serve.reason"] for park in parks] == reasons
    assert ["resumed" in {event.name for event in s.events} for s in (yielded, left, last)] == [False, True, True]
    steps = [(span.attributes[FROM], span.attributes[TO]) for span in named(moved, "steps")]
    ends = [0, *(to for _, to in steps)]
    assert [begin for begin, _ in steps] == ends[:-1] and ends[-1] == STEPS, "each step is in one span"
    assert len(steps) > 3, "there were checkpoints"


def test_who_hears_of_it_can_go_on_with_the_trace(moved: MovedJob, collector: Collector) -> None:
    (post,) = named(moved, "POST /v1/videos")
    assert moved.traceresponse == f"00-{CLIENT.trace_id}-{post.span_id}-01"
    (hook,) = [headers for headers in collector.hooks if CLIENT.trace_id in headers["traceparent"]]
    (webhook,) = named(moved, "webhook")
    assert hook["traceparent"] == f"00-{CLIENT.trace_id}-{webhook.span_id}-01"
    assert webhook.attributes["server.address"] == "127.0.0.1"


def test_no_secret_is_sent(moved: MovedJob, collector: Collector) -> None:
    assert all(headers[HEADER_NAME] == HEADER_VALUE for headers in collector.headers)
    told = repr(collector.spans)
    for secret in ("red circle", "/hook", HEADER_VALUE, "Signature", "whsec_"):
        assert secret not in told
