"""What the workers tell, and what it makes of a job: progress, checkpoints, ends of stages, failed attempts."""

import random
import time

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
from serve_app.jobs import Job, JobError, overall_progress
from serve_app.registry.leases import Lease
from serve_app.registry.state import RegistryState, log
from serve_app.scheduling.retries import REPLICA_DIED, Retry, after_failure


class JobReports:
    """Takes reports by lease; each is idempotent, and one under a lapsed lease is answered `stop`."""

    def __init__(self, state: RegistryState) -> None:
        self._state = state

    async def take(self, report: Report) -> Directive:
        """What the worker is to do next: continue, stop because the lease is not its own any more, or yield.

        Raises:
            RegistryUnavailableError: the database is away; the worker repeats what it must not lose.
        """
        lease = self._state.leases.held(report.job_id, report.lease)
        if lease is None:
            return Directive.STOP
        self._state.leases.renew(lease, time.monotonic())
        match report.event:
            case Started(replica, device):
                lease.replica = replica
                if not lease.begun:
                    lease.begun = True
                    log.info(f"[{lease.job_id}] {lease.stage} on {replica} ({device})")
            case Progress() as event:
                await self._progress(lease, event)
            case Checkpointed(step):
                await self._keep_checkpoint(lease, step)
            case Parked() as event:
                await self._park(lease, event)
            case Finished() as event:
                await self._finish_stage(lease, event)
            case Failed() as event:
                await self.fail_attempt(lease, event)
        return lease.directive

    async def _progress(self, lease: Lease, event: Progress) -> None:
        sampling = lease.stage is Stage.SAMPLING
        if sampling and not lease.stepped:
            lease.begin_at(event.begun_at)
        lease.report(event.done if sampling else lease.step, event.device_s)
        if event.preview:
            lease.preview, lease.preview_step = event.preview, event.done
        lease.progress = overall_progress(lease.stage, event.done, event.total)
        self._state.feed.publish_progress(lease.job_id)
        now = time.monotonic()
        if self._state.leases.needs_saving(lease, now):
            lease.saved_at = now
            if sampling:
                self._state.learn(lease)
            await self._save(lease)

    async def _save(self, lease: Lease) -> None:
        with lease.saving() as used:
            kept = await self._state.database.run(
                jobs_sql.renew,
                lease.job_id,
                lease.token,
                expires_at=time.time() + self._state.settings.lease_s,
                step=lease.step,
                progress=lease.progress,
                used=used,
            )
        if not kept:
            self.lease_gone(lease)

    async def _keep_checkpoint(self, lease: Lease, step: int) -> None:
        lease.keep_checkpoint(step)
        kept = await self._state.database.run(jobs_sql.keep_checkpoint, lease.job_id, lease.token, step=step)
        if not kept:
            self.lease_gone(lease)

    def lease_gone(self, lease: Lease) -> None:
        """SQL has the word: another registry has cancelled the job or taken it over. Its worker is to stop."""
        if self._state.leases.held(lease.job_id, lease.token) is not lease:
            return  # it has ended here while SQL was asked
        log.warning(f"[{lease.job_id}] its lease is gone from the database; its replica is told to stop")
        self._state.end_lease(lease)
        self._state.tell(lease, Directive.STOP)

    async def _park(self, lease: Lease, event: Parked) -> None:
        lease.report(event.step, event.device_s)
        note = f"parked at step {event.step}: {event.reason}"
        with lease.saving() as used:
            job = await self._state.database.run(
                jobs_sql.park, lease.job_id, lease.token, now=time.time(), step=event.step, used=used, note=note
            )
        self._state.follow_end(lease, job)
        if job is not None:
            log.info(f"[{job.id}] {note}")

    async def _finish_stage(self, lease: Lease, event: Finished) -> None:
        # A sampler that is done has run all steps, whatever its last report said.
        sampled = lease.stage is Stage.SAMPLING
        lease.report(lease.job.spec.num_inference_steps if sampled else lease.step, event.device_s)
        seconds = event.seconds | {"device": round(lease.reported.device_s, 4)}
        with lease.saving() as used:
            job = await self._state.database.run(
                jobs_sql.finish_stage, lease.job_id, lease.token, seconds=seconds, now=time.time(), used=used
            )
        self._state.follow_end(lease, job)
        if job is not None:
            log.info(f"[{job.id}] {lease.stage} done, now {job.state}")

    async def lost(self, lease: Lease, why: str, died: bool = False) -> None:
        """The replica says no more; died: it was the end of its process, and the job had begun on it."""
        code = REPLICA_DIED if died and lease.begun else "replica_lost"
        await self.fail_attempt(lease, Failed(code, why, transient=True))

    async def fail_attempt(self, lease: Lease, event: Failed) -> None:
        """Another attempt or the end; either is one transaction.

        Raises:
            RegistryUnavailableError: the database is away. The lease stays, and its worker tells the end again.
        """
        job = await self._state.database.run(get_job, lease.job_id)
        if job is None or job.lease != lease.token:
            self._state.end_lease(lease)
            return
        match after_failure(job, event, lease.progress, self._state.settings, random.random()):
            case Retry() as again:
                await self._try_again(job, lease, event, again)
            case JobError() as error:
                await self._fail(lease, error)

    async def _try_again(self, job: Job, lease: Lease, event: Failed, again: Retry) -> None:
        now, note = time.time(), f"{event.code}: {event.message}"
        with lease.saving() as used:
            waiting = await self._state.database.run(
                jobs_sql.retry,
                job.id,
                lease.token,
                now=now,
                available_at=now + again.pause_s,
                note=note,
                attempt=again.attempt,
                used=used,
                deaths=again.deaths,
                died_at=again.died_at,
            )
        self._state.follow_end(lease, waiting, again.pause_s)
        if waiting is not None:
            log.warning(
                f"[{job.id}] {lease.stage} did not succeed ({note}); again in {again.pause_s:.1f} s "
                f"as attempt {again.attempt}"
            )

    async def _fail(self, lease: Lease, error: JobError) -> None:
        with lease.saving() as used:
            failed = await self._state.database.run(
                jobs_sql.fail, lease.job_id, lease.token, now=time.time(), error=error, used=used
            )
        self._state.follow_end(lease, failed)
        if failed is not None:
            log.error(f"[{failed.id}] failed: {error.code}: {error.message}")
