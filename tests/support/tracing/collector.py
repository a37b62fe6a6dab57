"""A collector of OTLP over HTTP in a thread of the test: it keeps what processes of a real server send."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

Value = str | int | float | bool


@dataclass(frozen=True)
class SentEvent:
    """As in OTLP."""

    name: str
    at_ns: int
    attributes: dict[str, Value]


@dataclass(frozen=True)
class SentSpan:
    """As in OTLP; ids in hex."""

    service: str
    instance: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    attributes: dict[str, Value] = field(default_factory=dict)
    events: tuple[SentEvent, ...] = ()
    error: str | None = None


@dataclass
class Collector:
    """What has come. headers: of each call."""

    url: str = ""
    spans: list[SentSpan] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hooks: list[dict[str, str]] = field(default_factory=list)  # the headers of webhooks, at /hook

    def of(self, trace_id: str) -> list[SentSpan]:
        """The spans of one trace, by their beginning."""
        return sorted((s for s in list(self.spans) if s.trace_id == trace_id), key=lambda s: (s.start_ns, -s.end_ns))

    async def take(self, request: web.Request) -> web.Response:
        """POST /v1/traces."""
        assert request.content_type == "application/x-protobuf"
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.spans += spans_in(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def hook(self, request: web.Request) -> web.Response:
        """A client's own receiver of webhooks."""
        self.hooks.append({name.lower(): value for name, value in request.headers.items()})
        return web.Response(status=204)


def spans_in(message: Any) -> list[SentSpan]:
    """All spans of a call."""
    return [
        SentSpan(
            service=resource["service.name"],
            instance=resource["service.instance.id"],
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex() or None,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            attributes=_values(span.attributes),
            events=tuple(SentEvent(e.name, e.time_unix_nano, _values(e.attributes)) for e in span.events),
            error=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None,
        )
        for group in message.resource_spans
        for resource in [_values(group.resource.attributes)]
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector on a free port, in a thread."""
    collector = Collector()
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=2**26)
    app.add_routes([web.post("/v1/traces", collector.take), web.post("/hook", collector.hook)])
    runner = web.AppRunner(app)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, name="collector", daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
