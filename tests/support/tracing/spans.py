"""Spans that a test keeps in memory, and what must hold for those of one trace."""

from collections.abc import Iterator
from contextlib import contextmanager

from deployments.tracing.span import FinishedSpan
from deployments.tracing.tracer import TRACER


@contextmanager
def traced(sample_ratio: float = 1.0) -> Iterator[list[FinishedSpan]]:
    """The spans of this process, as they end."""
    spans: list[FinishedSpan] = []
    TRACER.send_to(spans.append, sample_ratio)
    try:
        yield spans
    finally:
        TRACER.send_to(None)


def named(spans: list[FinishedSpan], name: str) -> list[FinishedSpan]:
    """Those of this name, by their beginning."""
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_ns)
