"""Whose lines are logged: ids that lie in the context, and so go with a job through tasks and threads into each line.

with log_ids(job="video_1", tenant="acme"):
    log.info("sampling begins")     # has both, here and in what is awaited or started from here
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass

from deployments.tracing.context import TraceContext


@dataclass(frozen=True, slots=True)
class LogIds:
    """What lines belong to; None: to no such thing."""

    job: str | None = None
    tenant: str | None = None
    lease: str | None = None  # the token
    trace: Callable[[], TraceContext] | None = None  # gives the span; asked only when a line is written

    def fields(self) -> dict[str, str]:
        """Those that there are, as a line has them."""
        found = {"job": self.job, "tenant": self.tenant, "lease": self.lease}
        if self.trace is not None:
            span = self.trace()
            found |= {"trace_id": span.trace_id, "span_id": span.span_id}
        return {name: value for name, value in found.items() if value is not None}


_NONE = LogIds()
_current: ContextVar[LogIds] = ContextVar("log_ids", default=_NONE)


def current_ids() -> LogIds:
    """Of the lines that are written here."""
    return _current.get()


def add_log_ids(
    *,
    job: str | None = None,
    tenant: str | None = None,
    lease: str | None = None,
    trace: Callable[[], TraceContext] | None = None,
) -> Token[LogIds]:
    """Put ids into all lines of this task from here on; what is None stays as it is.

    With another job than before nothing stays but the tenant: its lease and its trace are not those of the last one.
    """
    before = _current.get()
    if job is not None and job != before.job:
        before = LogIds(job, before.tenant)
    return _current.set(
        LogIds(before.job, tenant or before.tenant, lease or before.lease, before.trace if trace is None else trace)
    )


@contextmanager
def log_ids(
    *,
    job: str | None = None,
    tenant: str | None = None,
    lease: str | None = None,
    trace: Callable[[], TraceContext] | None = None,
) -> Iterator[None]:
    """As `add_log_ids`, until its end."""
    token = add_log_ids(job=job, tenant=tenant, lease=lease, trace=trace)
    try:
        yield
    finally:
        _current.reset(token)
