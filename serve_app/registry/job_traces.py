"""The trace of a job as SQL tells it: when it has ended, its history becomes spans.

Nothing of it is kept in memory, so a registry that was restarted in between, or another one on the same database, tells
all of it; and so a lease shows whose replica was killed with its own spans.
"""

import asyncio
import re
from collections.abc import Sequence

from deployments.errors import RegistryUnavailableError
from deployments.messages import ProteinSpec, Started
from deployments.tracing.context import TraceContext
from deployments.tracing.span import Attributes, FinishedSpan
from deployments.tracing.tracer import TRACER, Tracer
from serve_app.database.jobs import moves as moves_sql
from serve_app.jobs import Job, JobState, Move
from serve_app.registry.leases import Lease
from serve_app.registry.state import RegistryState, log

# How a retry is noted: the code of what went wrong, then what.
_CODE = re.compile(r"([a-z_]+): ")


class JobTraces:
    """Tells the traces of a registry's jobs."""

    def __init__(self, state: RegistryState, tracer: Tracer = TRACER) -> None:
        self._state = state
        self._tracer = tracer
        self._telling: set[asyncio.Task[None]] = set()

    def note_end(self, job: Job) -> None:
        """The job has ended."""
        # Without a move it was found ended, and is told by whoever ended it.
        if self._tracer.enabled and job.last_move is not None and job.trace.sampled:
            task = asyncio.get_running_loop().create_task(self._tell(job))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        """Wait for what is being told."""
        await asyncio.gather(*self._telling, return_exceptions=True)

    async def _tell(self, job: Job) -> None:
        try:
            moves = await self._state.database.run(moves_sql.history, job.id)
        except RegistryUnavailableError as error:
            with job.in_log():
                log.warning(f"its trace is not told: {error}")
            return
        for span in spans_of(job, moves):
            self._tracer.tell(span)


def spans_of(job: Job, moves: Sequence[Move]) -> list[FinishedSpan]:
    """The job's span, and one for each of its waits and leases: they lie end to end.

    Args:
        job: that has ended.
        moves: its history; empty if it is deleted.
    """
    assert job.completed_at is not None
    attributes = attributes_of(job) | {
        "mochi_serve.state": str(job.state),
        "mochi_serve.attempts": job.attempt,
        "mochi_serve.parks": job.parks,
        "mochi_serve.steps_run": job.steps_run,
        "mochi_serve.device_seconds": round(job.device_s, 3),
    }
    error = None if job.error is None else job.error.code
    whole = _span("job", job.span, job.trace, job.created_at, job.completed_at, attributes, error)
    parts = []
    for number, (move, after) in enumerate(zip(moves, moves[1:], strict=False), start=1):
        name = f"{'wait for' if move.state is JobState.QUEUED else 'lease of'} {move.stage}"
        about: Attributes = {
            "mochi_serve.job.id": job.id,
            "mochi_serve.stage": str(move.stage),
            "mochi_serve.attempt": move.attempt,
            "mochi_serve.end": after.note,
        }
        code = _CODE.match(after.note)
        own = job.trace.at(job.id, number)
        parts.append(_span(name, own, job.span, move.at, after.at, about, code[1] if code else None))
    return [whole, *parts]


def tell_dispatch(lease: Lease, started: Started, now: float, tracer: Tracer = TRACER) -> None:
    """From the claim to a replica's first word. now: Unix seconds."""
    job = lease.job
    # The lease of a registry before this one has none: when it was claimed is in the history alone.
    if not tracer.enabled or job.last_move is None:
        return
    about = {"mochi_serve.job.id": job.id, "mochi_serve.replica": started.replica, "mochi_serve.device": started.device}
    own = job.trace.at(job.id, job.moves, "dispatch")
    tracer.tell(_span("dispatch", own, job.move_span, job.last_move.at, now, about, None))


def attributes_of(job: Job) -> dict[str, str | int | float | bool]:
    """What spans tell of a job: never its prompt, nor where its end is sent."""
    about: dict[str, str | int | float | bool] = {
        "mochi_serve.job.id": job.id,
        "mochi_serve.tenant": job.tenant,
        "mochi_serve.tier": str(job.tier),
        "mochi_serve.steps": job.spec.steps,
    }
    if isinstance(job.spec, ProteinSpec):
        return about | {"mochi_serve.sequences": job.spec.sequences, "mochi_serve.tokens": job.spec.tokens}
    spec = job.spec
    return about | {
        "mochi_serve.size": f"{spec.width}x{spec.height}x{spec.num_frames}",
        "mochi_serve.quality": spec.quality,
    }


def _span(
    name: str, own: TraceContext, parent: TraceContext, begun: float, end: float, about: Attributes, error: str | None
) -> FinishedSpan:
    """begun, end: Unix seconds."""
    start_ns = round(begun * 1e9)
    return FinishedSpan(name, own, parent.span_id, start_ns, max(start_ns, round(end * 1e9)), about, error=error)
