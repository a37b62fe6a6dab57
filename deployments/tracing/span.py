"""Spans: what took how long within a trace. Light, so that work may be full of them where nothing is traced."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import TracebackType
from typing import Self

from deployments.tracing.context import TraceContext

Attributes = Mapping[str, str | int | float | bool]

NONE: Attributes = {}


class Kind(StrEnum):
    """OpenTelemetry's names of them."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened within a span."""

    name: str
    at_ns: int  # Unix time
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FinishedSpan:
    """A span that has ended."""

    name: str
    context: TraceContext
    parent_id: str | None  # None: it is the first of its trace
    start_ns: int  # Unix time
    end_ns: int
    attributes: Attributes = field(default_factory=dict)
    kind: Kind = Kind.INTERNAL
    events: tuple[SpanEvent, ...] = ()
    links: tuple[TraceContext, ...] = ()  # spans of other traces that it has to do with
    error: str | None = None  # a stable word for what went wrong; None: nothing did


Emit = Callable[[FinishedSpan], None]
"""Takes a span on its way to who keeps it; does not wait."""


class Span:
    """One that is not kept: every method does nothing."""

    __slots__ = ()

    def child(self, name: str, attributes: Attributes = NONE, kind: Kind = Kind.INTERNAL) -> "Span":
        """A part of it that begins now."""
        return self

    def event(self, name: str, attributes: Attributes = NONE) -> None:
        """Something happens now."""

    def set(self, attributes: Attributes) -> None:
        """Say more of it."""

    def end(self, error: str | None = None) -> None:
        """It is over; again, it does nothing. error: see FinishedSpan."""

    @property
    def traceparent(self) -> str | None:
        """For whoever is called within it."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(None if kind is None else kind.__name__)


SILENT = Span()
"""For all that is not traced."""


class LiveSpan(Span):
    """A span that is kept once it has ended. Its methods may be called from any thread.

    Args:
        emit: takes it at its end.
        context: its own.
        parent_id: see FinishedSpan, as the others.
        start_ns: Unix time; now by default.
    """

    __slots__ = ("_attributes", "_emit", "_ended", "_events", "_span")

    def __init__(
        self,
        emit: Emit,
        name: str,
        context: TraceContext,
        parent_id: str | None,
        attributes: Attributes = NONE,
        kind: Kind = Kind.INTERNAL,
        start_ns: int | None = None,
        links: tuple[TraceContext, ...] = (),
    ) -> None:
        start = time.time_ns() if start_ns is None else start_ns
        self._emit = emit
        self._span = FinishedSpan(name, context, parent_id, start, start, kind=kind, links=links)
        self._attributes = dict(attributes)
        self._events: list[SpanEvent] = []
        self._ended = False

    def child(self, name: str, attributes: Attributes = NONE, kind: Kind = Kind.INTERNAL) -> Span:
        own = self._span.context
        return LiveSpan(self._emit, name, replace(own, span_id=secrets.token_hex(8)), own.span_id, attributes, kind)

    def event(self, name: str, attributes: Attributes = NONE) -> None:
        self._events.append(SpanEvent(name, time.time_ns(), attributes))

    def set(self, attributes: Attributes) -> None:
        self._attributes |= attributes

    def end(self, error: str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        self._emit(
            replace(
                self._span,
                end_ns=max(time.time_ns(), self._span.start_ns),  # the clock may have been set back
                attributes=dict(self._attributes),
                events=tuple(self._events),
                error=error,
            )
        )

    @property
    def traceparent(self) -> str | None:
        return self._span.context.traceparent
