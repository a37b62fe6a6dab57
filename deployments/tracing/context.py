"""Which trace a job belongs to: W3C's `traceparent`, read and written, and the ids that all processes find alike.

A job's trace is that of the request that asked for it, or one of its own, whose id is the job's: whoever knows the one
can look up the other. Ids of spans that others are children of are made from the job's id too, so a process that was
killed and one that takes over name the same span.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Self

HEADER = "traceparent"
_JOB_ID = re.compile(r"[a-z]+_([0-9a-f]{32})")
# Version 00 has exactly four fields; a later one may have more behind them.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_LONGEST = 512  # characters
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span's place in its trace, as it goes from process to process."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits
    sampled: bool  # whether its spans are kept, in all processes

    @property
    def traceparent(self) -> str:
        """As W3C's Trace Context has it, version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    def at(self, *path: object) -> Self:
        """Another span of the same trace, see `span_id_of`."""
        return replace(self, span_id=span_id_of(*path))


def parse_traceparent(header: str | None) -> TraceContext | None:
    """What a header says; None if there is none, or it is not what W3C's Trace Context allows: as if it were not there.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    match = _TRACEPARENT.fullmatch(header.strip(" \t")) if header and len(header) <= _LONGEST else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def new_context(job_id: str, incoming: TraceContext | None, sample_ratio: float) -> TraceContext:
    """The span of the request that asks for a job.

    Args:
        incoming: of the client; its trace goes on, and is kept if the client keeps it.
        sample_ratio: of traces without one, the part that is kept. It goes by the trace's id, so a request that is
            repeated is kept or not, as before.
    """
    trace_id = trace_id_of(job_id) if incoming is None else incoming.trace_id
    sampled = int(trace_id[16:], 16) < sample_ratio * 2**64 if incoming is None else incoming.sampled
    return TraceContext(trace_id, span_id_of(job_id, "request"), sampled)


def context_of_job(job_id: str, traceparent: str | None) -> TraceContext:
    """The span of the request that asked for a job. traceparent: kept with it; None: its trace is its own, unkept."""
    return parse_traceparent(traceparent) or new_context(job_id, None, 0)


def trace_id_of(job_id: str) -> str:
    """The id of a job's own trace: its own 32 digits."""
    match = _JOB_ID.fullmatch(job_id)
    return match[1] if match and match[1] != _NO_TRACE else hashlib.sha256(job_id.encode()).hexdigest()[:32]


def span_id_of(*path: object) -> str:
    """The same for the same path, as of `"video_1", "request"`."""
    return hashlib.sha256("/".join(map(str, path)).encode()).hexdigest()[:16]
