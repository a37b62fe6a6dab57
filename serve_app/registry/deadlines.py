"""The loop that cancels jobs at their deadlines.

The deadlines are in SQL, so a registry that was restarted, or another one on the database, goes on
with them. Here is only the moment until which the loop sleeps.
"""

import asyncio
import math

from deployments.background import run_forever, wait_for
from serve_app.database.jobs import deadlines as deadlines_sql
from serve_app.jobs import Job, JobState
from serve_app.registry.state import RegistryState, log

MAX_AT_ONCE = 200  # jobs that are cancelled between two looks into SQL


class Deadlines:
    """Cancels what is not completed by its `cancel_at`, and stops its replica.

    Args:
        state: shared with the other parts of the registry.
        ready: set when the leases from before the start are in memory.
    """

    def __init__(self, state: RegistryState, ready: asyncio.Event) -> None:
        self._state = state
        self._ready = ready
        self._timing = state.timing.deadlines
        self._woken = asyncio.Event()
        self._sleeps_until = math.inf  # Unix seconds; infinite while it looks

    def note(self, job: Job) -> None:
        """A job was accepted, and that is committed: the loop wakes if its deadline is the next one."""
        if job.cancel_at is not None and job.cancel_at < self._sleeps_until:
            self._woken.set()

    async def run(self) -> None:
        """Keep the deadlines for ever; while the database is away, they wait."""
        await self._ready.wait()
        await run_forever(self._round, "cancelling jobs at their deadlines", log, self._timing.retry_s)

    async def _round(self) -> float:
        """Cancel what is due, and sleep until the next deadline. Returns the shortest pause."""
        state, timing = self._state, self._timing
        self._woken.clear()
        self._sleeps_until = math.inf
        now = state.unix_time()
        due = await state.database.run(deadlines_sql.due_ids, now=now, limit=MAX_AT_ONCE)
        answers = await asyncio.gather(*(self._cancel(job_id, now) for job_id in due), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        next_at = await state.database.run(deadlines_sql.next_deadline)
        now = state.unix_time()
        self._sleeps_until = min(math.inf if next_at is None else next_at, now + timing.longest_pause_s)
        await wait_for(self._woken, max(0.0, self._sleeps_until - now))
        return timing.shortest_pause_s

    async def _cancel(self, job_id: str, now: float) -> None:
        state = self._state
        lease = state.leases.of_job(job_id)
        has_begun = lease is not None and lease.has_begun
        async with state.unsaved_usage(job_id) as (token, used):
            job = await state.database.run(
                deadlines_sql.cancel_due, job_id, now=now, lease=token, has_begun=has_begun, used=used
            )
        if job is None:
            return
        state.take_over_end(job)
        if job.state is JobState.CANCELLED and job.error is not None:
            with job.in_log():
                log.info(f"cancelled: {job.error.code}")
