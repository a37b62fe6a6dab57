"""Where the spans of a process go: nowhere, unless an exporter is configured.

    with TRACER.begin("accept", parent, {"mochi_serve.job.id": job_id}):
        ...

A process has one `TRACER`, as it has one log.
"""

import secrets
from collections.abc import Callable
from dataclasses import replace

from deployments.settings import TracingSettings
from deployments.tracing.context import TraceContext
from deployments.tracing.span import NONE, SILENT, Attributes, Emit, FinishedSpan, Kind, LiveSpan, Span

Flush = Callable[[float], None]
"""Sends what is waiting, in as many seconds at most. Blocks."""


class Tracer:
    """The spans of one process. Thread-safe."""

    def __init__(self) -> None:
        self._emit: Emit | None = None
        self._flush: Flush = lambda _: None
        self.sample_ratio = 0.0  # of the traces that begin here, the part that is kept

    def __reduce__(self) -> tuple[Callable[[], "Tracer"], tuple[()]]:
        """Serve sends the classes of deployments by value, with what they name: in a replica that is its own one."""
        return of_this_process, ()

    @property
    def enabled(self) -> bool:
        """Whether spans are kept."""
        return self._emit is not None

    def start(self, settings: TracingSettings, role: str) -> None:
        """Keep spans as the settings say. To be called once, before the process does anything.

        Args:
            role: of this process, which its spans are told apart by.
        """
        if settings.exporter == "none" or self.enabled:
            return
        # OpenTelemetry's SDK is 90 modules: only who traces loads them.
        from deployments.tracing.otlp import OtlpExport

        export = OtlpExport(settings, role)
        self.send_to(export.emit, settings.sample_ratio, export.flush)

    def send_to(self, emit: Emit | None, sample_ratio: float = 1.0, flush: Flush = lambda _: None) -> None:
        """Keep spans, or none from now on.

        Args:
            emit: takes each; None keeps none.
            sample_ratio: as in TracingSettings.
            flush: see Flush.
        """
        self._emit, self._flush = emit, flush
        self.sample_ratio = 0.0 if emit is None else sample_ratio

    def flush(self, seconds: float = 2.0) -> None:
        """Send what is waiting: this process is to end. Blocks, for so long at most."""
        self._flush(seconds)

    def begin(self, name: str, parent: TraceContext, attributes: Attributes = NONE, kind: Kind = Kind.INTERNAL) -> Span:
        """A span that begins now, as a child of one that may be another process's."""
        if self._emit is None or not parent.sampled:
            return SILENT
        own = replace(parent, span_id=secrets.token_hex(8))
        return LiveSpan(self._emit, name, own, parent.span_id, attributes, kind)

    def begin_as(
        self,
        name: str,
        context: TraceContext,
        parent_id: str | None,
        attributes: Attributes = NONE,
        kind: Kind = Kind.INTERNAL,
        links: tuple[TraceContext, ...] = (),
        *,
        start_ns: int | None = None,
    ) -> Span:
        """A span whose id is known before it begins, see LiveSpan."""
        if self._emit is None or not context.sampled:
            return SILENT
        return LiveSpan(self._emit, name, context, parent_id, attributes, kind, start_ns, links)

    def tell(self, span: FinishedSpan) -> None:
        """Keep a span that has ended."""
        if self._emit is not None and span.context.sampled:
            self._emit(span)


def of_this_process() -> Tracer:
    """`TRACER`."""
    return TRACER


TRACER = Tracer()
"""Of this process."""
