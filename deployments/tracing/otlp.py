"""Spans on their way to a collector, by OTLP over HTTP: batched in a thread. Imported only where it is configured.

A collector that is away costs nothing but its spans: 2,048 wait, those beyond are dropped, and the log has a line a
minute.
"""

import atexit
import logging
import socket
import threading
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from deployments.settings import TracingSettings
from deployments.tracing.context import TraceContext
from deployments.tracing.span import FinishedSpan

BATCH_MS = 500  # that a span waits for others; a process that is killed loses no more
TIMEOUT_S = 10.0
COMPLAIN_EVERY_S = 60.0

log = logging.getLogger("ray.serve")


class OtlpExport:
    """Sends spans to the collector of the settings.

    Args:
        role: of this process.
        exporter: instead of the collector.
    """

    def __init__(self, settings: TracingSettings, role: str, exporter: SpanExporter | None = None) -> None:
        _complain_in_our_log()
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._resource = Resource(
            {
                "service.namespace": settings.service,
                "service.name": f"{settings.service}-{role}",
                "service.version": _version(),
                "service.instance.id": uuid4().hex,
                "host.name": socket.gethostname(),
            }
        )
        self._scope = InstrumentationScope("mochi_serve", _version())
        exporter = exporter or OTLPSpanExporter(settings.traces_url, headers=headers, timeout=TIMEOUT_S)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=BATCH_MS)
        atexit.register(self.flush)

    def emit(self, span: FinishedSpan) -> None:
        """Put it into the next batch."""
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=_context(span.context),
                parent=None if span.parent_id is None else _context(span.context, span.parent_id),
                resource=self._resource,
                attributes=dict(span.attributes),
                events=[Event(event.name, dict(event.attributes), event.at_ns) for event in span.events],
                links=[Link(_context(link)) for link in span.links],
                kind=SpanKind[span.kind],
                status=Status(StatusCode.UNSET) if span.error is None else Status(StatusCode.ERROR, span.error),
                start_time=span.start_ns,
                end_time=span.end_ns,
                instrumentation_scope=self._scope,
            )
        )

    def flush(self, seconds: float = 2.0) -> None:
        """Send what is waiting. Blocks, for so long at most."""
        # The SDK heeds no timeout: a collector that hangs would hold the process.
        sending = threading.Thread(target=self._processor.force_flush, name="traces", daemon=True)
        with suppress(RuntimeError):  # the interpreter is ending, and starts no thread any more
            sending.start()
            sending.join(seconds)


def _context(context: TraceContext, span_id: str | None = None) -> SpanContext:
    return SpanContext(
        int(context.trace_id, 16), int(span_id or context.span_id, 16), is_remote=False, trace_flags=TraceFlags(1)
    )


def _version() -> str:
    try:
        return version("mochi-serve")
    except PackageNotFoundError:  # run from its source alone
        return "unknown"


class _OurLog(logging.Handler):
    """What OpenTelemetry says of a collector that is away, now and then."""

    _said_at = -COMPLAIN_EVERY_S

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._said_at >= COMPLAIN_EVERY_S:
            self._said_at = now
            log.warning("traces: spans are lost: %s", record.getMessage())


def _complain_in_our_log() -> None:
    """OpenTelemetry's own log would write a traceback for each batch."""
    for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.setLevel(logging.WARNING)
        if not any(isinstance(handler, _OurLog) for handler in logger.handlers):
            logger.addHandler(_OurLog())
