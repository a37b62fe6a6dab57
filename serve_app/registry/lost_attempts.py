"""What a killed or hung replica leaves, and failures that replicas report: another attempt, or the end of the job."""

import random

from deployments.messages import Failed
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.database.jobs.rows import get_job
from serve_app.jobs import JobError
from serve_app.registry.leases import Lease
from serve_app.registry.state import RegistryState, log
from serve_app.scheduling.retries import REPLICA_DIED, REPLICA_GONE, Retry, after_failure


class LostAttempts:
    """Ends leases under which nothing more is done. What follows is decided by `after_failure`."""

    def __init__(self, state: RegistryState) -> None:
        self._state = state

    async def lose(self, lease: Lease, reason: str, replica_died: bool = False) -> None:
        """Nothing more is reported under the lease: another attempt, or the end of the job.

        Args:
            replica_died: the process of the replica ended. The job is a suspect if it had begun
                there, and has nothing to do with it if not.
        """
        code = "replica_lost"
        if replica_died:
            code = REPLICA_DIED if lease.has_begun else REPLICA_GONE
        with lease.in_log():
            await self.fail(lease, Failed(code, reason, transient=True))

    async def fail(self, lease: Lease, event: Failed) -> None:
        """Another attempt, or the end of the job; either is one transaction.

        Raises:
            RegistryUnavailableError: the database is away. The lease stays, and its worker reports
                the end again.
        """
        job = await self._state.database.run(get_job, lease.job_id)
        if job is None or job.lease != lease.token:
            self._state.end_lease(lease)
            return
        outcome = after_failure(
            job,
            event,
            progress=lease.progress,
            alone=lease.alone,
            settings=self._state.settings,
            jitter=random.random(),
            outage_pause_s=self._state.timing.outage_pause_s,
        )
        match outcome:
            case Retry() as retry:
                await self._retry(lease, event, retry)
            case JobError() as error:
                await self._fail_job(lease, error)

    async def _retry(self, lease: Lease, event: Failed, retry: Retry) -> None:
        now = self._state.unix_time()
        note = f"{event.code}: {event.message}"
        async with lease.saving() as used:
            job = await self._state.database.run(
                ends_sql.retry,
                lease.job_id,
                lease.token,
                now=now,
                available_at=now + retry.pause_s,
                code=event.code,
                note=note,
                attempt=retry.attempt,
                used=used,
                deaths=retry.deaths,
                died_at=retry.died_at,
            )
        self._state.end_lease_with(lease, job, retry.pause_s)
        if job is not None:
            log.warning(
                f"{lease.stage} did not succeed ({note}); again in {retry.pause_s:.1f} s as attempt {retry.attempt}"
            )

    async def _fail_job(self, lease: Lease, error: JobError) -> None:
        async with lease.saving() as used:
            job = await self._state.database.run(
                ends_sql.fail, lease.job_id, lease.token, now=self._state.unix_time(), error=error, used=used
            )
        self._state.end_lease_with(lease, job)
        if job is not None:
            log.error(f"failed: {error.code}: {error.message}")
