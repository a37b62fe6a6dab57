"""What leaves as OTLP is what was told."""

import logging

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.settings import TracingSettings
from deployments.tracing.context import TraceContext
from deployments.tracing.otlp import OtlpExport
from deployments.tracing.span import FinishedSpan, Kind, SpanEvent
from tests.support.logs import serve_log

SETTINGS = TracingSettings(exporter="otlp", endpoint="http://127.0.0.1:1", service="clips")
OWN, OTHER = TraceContext("a" * 32, "b" * 16, True), TraceContext("c" * 32, "d" * 16, True)


def test_all_of_a_span_is_sent() -> None:
    exporter = InMemorySpanExporter()
    export = OtlpExport(SETTINGS, "sampler", exporter)
    event = SpanEvent("parked", 15, {"mochi_serve.step": 3})
    export.emit(
        FinishedSpan("sample", OWN, "e" * 16, 10, 20, {"x": 1}, Kind.CLIENT, (event,), (OTHER,), "replica_lost")
    )
    export.emit(FinishedSpan("POST", OWN, None, 10, 20))
    export.flush()
    (resource,) = encode_spans(exporter.get_finished_spans()).resource_spans
    named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert (named["service.name"], named["service.namespace"]) == ("clips-sampler", "clips")
    sent, first = resource.scope_spans[0].spans
    assert (sent.trace_id.hex(), sent.span_id.hex(), sent.parent_span_id.hex()) == ("a" * 32, "b" * 16, "e" * 16)
    assert (sent.start_time_unix_nano, sent.end_time_unix_nano) == (10, 20)
    assert (sent.name, sent.kind, sent.status.message) == ("sample", sent.SPAN_KIND_CLIENT, "replica_lost")
    assert sent.status.code == sent.status.STATUS_CODE_ERROR
    assert (sent.events[0].name, sent.events[0].time_unix_nano) == ("parked", 15)
    assert sent.links[0].trace_id.hex() == "c" * 32
    assert (first.parent_span_id, first.status.code) == (b"", first.status.STATUS_CODE_UNSET)


def test_of_a_collector_that_is_away_the_log_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    OtlpExport(SETTINGS, "sampler", InMemorySpanExporter())
    with serve_log(caplog):
        for _ in range(3):
            logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").error("no such %s", "host")
    ours = [record.getMessage() for record in caplog.records if record.name == "ray.serve"]
    assert ours == ["traces: spans are lost: no such host"]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://api.example.com/otlp/v1/traces", "https://api.example.com/otlp/v1/traces"),
    ],
)
def test_where_spans_go(endpoint: str, url: str) -> None:
    assert TracingSettings(exporter="otlp", endpoint=endpoint).traces_url == url


@pytest.mark.parametrize(
    "endpoint", [None, "collector:4318", "ftp://collector", "http://key@collector:4318", "http://"]
)
def test_what_is_no_endpoint_is_refused(endpoint: str | None) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        TracingSettings(exporter="otlp", endpoint=endpoint)
