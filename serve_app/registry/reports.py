"""What the workers tell, and what it makes of a job: progress, checkpoints, ends of stages, failed attempts."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from deployments.messages import (
    Checkpointed,
    Directive,
    Failed,
    Finished,
    Parked,
    Progress,
    Report,
    Stage,
    Started,
)
from serve_app.database import jobs as jobs_sql
from serve_app.database.job_rows import get_job
from serve_app.jobs import Job, JobError, Usage, overall_progress
from serve_app.registry.leases import Lease
from serve_app.registry.state import RegistryState, log
from serve_app.scheduling.retries import REPLICA_DIED, Retry, after_failure

T = TypeVar("T")
NOTHING = Usage()


class JobReports:
    """Takes reports by lease; each is idempotent, and one under a lapsed lease is answered `stop`."""

    def __init__(self, board: RegistryState) -> None:
        self._board = board

    async def take(self, report: Report) -> Directive:
        """What the worker is to do next: continue, stop because the lease is not its own any more, or yield.

        Raises:
            RegistryUnavailableError: the database is away; the worker repeats what it must not lose.
        """
        lease = self._board.leases.held(report.job_id, report.lease)
        if lease is None:
            return Directive.STOP
        self._board.leases.renew(lease, time.monotonic())
        match report.event:
            case Started(replica, device):
                self._started(lease, replica, device)
            case Progress() as event:
                await self._progress(lease, event)
            case Checkpointed(step):
                lease.step = max(lease.step, step)
                lease.checkpoint_step = step
                self._keep(lease, await self._write(jobs_sql.keep_checkpoint, lease, step))
            case Parked() as event:
                await self._parked(lease, event)
            case Finished() as event:
                await self._finished(lease, event)
            case Failed() as event:
                await self.attempt_failed(lease, event)
        return lease.directive

    def _started(self, lease: Lease, replica: str, device: str) -> None:
        lease.replica = replica
        if not lease.begun:
            lease.begun = True
            log.info(f"[{lease.job_id}] {lease.stage} on {replica} ({device})")

    async def _progress(self, lease: Lease, event: Progress) -> None:
        if lease.stage is Stage.SAMPLING:
            if not lease.stepped:  # a refused checkpoint makes the replica begin earlier than was thought
                lease.stepped, lease.learned_step = True, event.begun_at
                lease.counted_step = min(lease.counted_step, event.begun_at)
                lease.step = event.done
            lease.step = max(lease.step, event.done)  # a report may come late, after a newer one
        lease.used(event.device_s)
        if event.preview:
            lease.preview, lease.preview_step = event.preview, event.done
        lease.progress = overall_progress(lease.stage, event.done, event.total)
        self._board.feed.progressed(lease.job_id)
        now = time.monotonic()
        if self._board.leases.needs_saving(lease, now):
            lease.saved_at = now
            if lease.stage is Stage.SAMPLING:
                self._board.learn(lease)
            await self._save(lease)

    async def _save(self, lease: Lease) -> None:
        expires, spent = time.time() + self._board.jobs.lease_s, lease.count()
        saved = (expires, lease.step, lease.progress, spent)
        self._keep(lease, await self._write(jobs_sql.renew, lease, *saved, spent=spent))

    def _keep(self, lease: Lease, kept: bool) -> None:
        """SQL has the word: another registry may have cancelled the job or taken it over."""
        if not kept and self._board.leases.held(lease.job_id, lease.token) is lease:
            self.lease_gone(lease)

    def lease_gone(self, lease: Lease) -> None:
        """Its worker is to stop."""
        log.warning(f"[{lease.job_id}] its lease is gone from the database; its replica is told to stop")
        self._board.end_lease(lease)
        self._board.tell(lease, Directive.STOP)

    async def _parked(self, lease: Lease, event: Parked) -> None:
        lease.step = event.step
        lease.used(event.device_s)
        note, spent = f"parked at step {event.step}: {event.reason}", lease.count()
        job = await self._end(lease, jobs_sql.park, time.time(), event.step, spent, note, spent=spent)
        if job is not None:
            log.info(f"[{job.id}] {note}")

    async def _finished(self, lease: Lease, event: Finished) -> None:
        lease.used(event.device_s)
        if lease.stage is Stage.SAMPLING:  # all steps were run, whatever its last report said
            lease.step = lease.job.spec.num_inference_steps
        counted_step, spent = lease.counted_step, lease.count()
        seconds = event.seconds | {"device": round(lease.device_s, 4)}
        ended = (seconds, time.time(), counted_step, spent.device_s)
        job = await self._end(lease, jobs_sql.finish_stage, *ended, spent=spent)
        if job is not None:
            log.info(f"[{job.id}] {lease.stage} done, now {job.state}")

    async def attempt_failed(self, lease: Lease, event: Failed) -> None:
        """Another attempt or the end; either is one transaction."""
        job = await self._board.database.run(get_job, lease.job_id)
        if job is None or job.lease != lease.token:
            self._board.end_lease(lease)
            return
        settings = self._board.jobs
        match after_failure(job, event, lease.progress, settings, random.random()):
            case Retry() as again:
                await self._try_again(job, lease, event, again)
            case JobError() as error:
                spent = lease.count()
                failed = await self._end(lease, jobs_sql.fail, time.time(), error, spent, spent=spent)
                if failed is not None:
                    log.error(f"[{job.id}] failed: {error.code}: {error.message}")

    async def _try_again(self, job: Job, lease: Lease, event: Failed, again: Retry) -> None:
        now, note, spent = time.time(), f"{event.code}: {event.message}", lease.count()
        how = (now, now + again.pause_s, note, again.attempt, spent, again.deaths, again.died_at)
        if await self._end(lease, jobs_sql.retry, *how, spent=spent, pause_s=again.pause_s) is not None:
            told = f"did not succeed ({note}); again in {again.pause_s:.1f} s as attempt {again.attempt}"
            log.warning(f"[{job.id}] {lease.stage} {told}")

    async def lost(self, lease: Lease, why: str, died: bool = False) -> None:
        """The replica says no more; died: it was the end of its process, and the job had begun on it."""
        code = REPLICA_DIED if died and lease.begun else "replica_lost"
        await self.attempt_failed(lease, Failed(code, why, transient=True))

    async def _end(
        self,
        lease: Lease,
        write: Callable[..., Job | None],
        *args: object,
        spent: Usage = NOTHING,
        pause_s: float = 0.0,
    ) -> Job | None:
        """Write what ends the lease. If the database is away the lease stays, and its worker tells the end again."""
        job = await self._write(write, lease, *args, spent=spent)
        self._board.learn(lease)
        self._board.end_lease(lease)
        self._board.follow(job, pause_s)
        return job

    async def _write(self, write: Callable[..., T], lease: Lease, *args: object, spent: Usage = NOTHING) -> T:
        try:
            return await self._board.database.run(write, lease.job_id, lease.token, *args)
        except BaseException:
            lease.uncount(spent)
            raise
