"""Spans of a process: kept where they are wanted, and nothing at all where they are not."""

import pickle
import subprocess
import sys

import pytest

from deployments.settings import TracingSettings
from deployments.tracing.context import TraceContext
from deployments.tracing.span import SILENT, FinishedSpan, Kind
from deployments.tracing.tracer import TRACER, Tracer
from tests.support import ROOT
from tests.support.tracing.spans import traced

PARENT = TraceContext("a" * 32, "b" * 16, True)


def test_a_span_tells_what_happened_in_it() -> None:
    with traced() as spans:
        span = TRACER.begin("sample", PARENT, {"a": 1}, Kind.SERVER)
        with span.child("store put", {"b": 2}, Kind.CLIENT):
            span.event("parked", {"step": 3})
        span.set({"c": True})
        span.end()
        span.end("again")
    part, whole = spans
    assert (whole.name, whole.parent_id, whole.kind, whole.error) == ("sample", PARENT.span_id, Kind.SERVER, None)
    assert whole.attributes == {"a": 1, "c": True}
    assert [(event.name, event.attributes) for event in whole.events] == [("parked", {"step": 3})]
    assert (part.name, part.parent_id, part.context.trace_id) == ("store put", whole.context.span_id, PARENT.trace_id)
    assert whole.start_ns <= part.start_ns <= part.end_ns <= whole.end_ns
    assert whole.start_ns <= whole.events[0].at_ns <= whole.end_ns
    assert span.traceparent == whole.context.traceparent


def test_what_is_raised_in_it_is_its_error() -> None:
    with traced() as spans, pytest.raises(ZeroDivisionError), TRACER.begin("accept", PARENT):
        _ = 1 / 0
    assert spans[0].error == "ZeroDivisionError"


def test_of_a_trace_that_is_not_kept_nothing_is() -> None:
    unkept = TraceContext(PARENT.trace_id, PARENT.span_id, False)
    with traced() as spans:
        assert TRACER.begin("sample", unkept) is SILENT
        assert TRACER.begin_as("sample", unkept, None) is SILENT
        TRACER.tell(FinishedSpan("lease", unkept, None, 0, 1))
    assert spans == []


def test_without_an_exporter_spans_cost_no_object() -> None:
    tracer = Tracer()
    tracer.start(TracingSettings(), "sampler")
    span = tracer.begin("sample", PARENT)
    assert span is SILENT and span.child("steps") is SILENT and span.traceparent is None
    with span:
        span.event("parked")
        span.set({"a": 1})


def test_without_an_exporter_opentelemetry_is_not_loaded() -> None:
    """In a process of its own: here others have loaded it."""
    program = (
        "import sys; from deployments.settings import TracingSettings; from deployments.tracing.tracer import TRACER;"
        "TRACER.start(TracingSettings(), 'x'); print(any('opentelemetry' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"


def test_a_tracer_that_travels_is_the_one_of_where_it_arrives() -> None:
    assert pickle.loads(pickle.dumps(TRACER)) is TRACER
