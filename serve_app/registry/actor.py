"""The detached actor that every job goes through: it accepts, tells, cancels, and takes what the workers say.

SQL is the truth (`jobs_sql`); what is in memory (`state`) can be lost at any moment. Killed, the actor starts again
from SQL: leases that its workers still renew go on, the others lapse and their jobs return to the queue.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from deployments.errors import RegistryUnavailableError
from deployments.messages import Directive, ReplicaInfo, Report, Stage
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.config import (
    HOUR_S,
    AccessSettings,
    JobSettings,
    RetentionSettings,
    SchedulingSettings,
    WebhookSettings,
)
from serve_app.database import access as access_sql
from serve_app.database import jobs as jobs_sql
from serve_app.database.connection import Database
from serve_app.database.intake import find_accepted, insert_job
from serve_app.database.job_rows import get_job
from serve_app.database.listing import list_jobs
from serve_app.database.meta import touch
from serve_app.feed.publisher import Batch, Cursor
from serve_app.jobs import (
    EVERY_JOB,
    Acceptance,
    Health,
    Job,
    JobFilter,
    JobPage,
    JobState,
    Move,
    Order,
    Submission,
    Usage,
)
from serve_app.registry.admission import AdmissionControl
from serve_app.registry.dispatcher import Dispatcher, Send
from serve_app.registry.feed_maintenance import FeedMaintenance
from serve_app.registry.queue_estimates import QueueEstimates
from serve_app.registry.reports import JobReports
from serve_app.registry.state import RegistryState, log
from serve_app.registry_api import RegistryApi
from serve_app.retention.sweeper import Sweeper
from serve_app.webhooks.sender import WebhookSender

HOLD_S = 2.0

OPEN = AccessSettings()


class JobRegistry(RegistryApi):
    """What the ingress asks and the workers report.

    Args:
        database_url: SQLAlchemy URL, SQLite or Postgres.
        jobs, scheduling: leases and retries; the order of the jobs.
        owner: name of this cluster in the leases, the same after a restart of the actor.
        send: carries a task to a replica and returns when its call has ended.
        retention, storage: how long jobs and files are kept, and where the files are; nothing is swept without.
        access: whether requests need keys.
        webhooks: how ends of jobs are told; without, they wait in the database.
        was_restarted: whether there was a registry of this owner before, which ingress replicas may still follow.
    """

    def __init__(
        self,
        database_url: str,
        jobs: JobSettings,
        scheduling: SchedulingSettings,
        owner: str,
        send: Send,
        retention: RetentionSettings | None = None,
        storage: StorageSettings | None = None,
        webhooks: WebhookSettings | None = None,
        access: AccessSettings = OPEN,
        was_restarted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._keep_keys_s = jobs.idempotency_h * HOUR_S
        self._database = Database(database_url)
        self._state = RegistryState(self._database, jobs, scheduling, owner)
        self._feed = self._state.feed
        self._feed.born_again = was_restarted()
        self._reports = JobReports(self._state)
        alone = database_url.startswith("sqlite")
        self._dispatcher = Dispatcher(self._state, self._reports, send, alone)
        self._feed_maintenance = FeedMaintenance(self._state, alone, access.mode)
        self._estimates = QueueEstimates(self._state)
        self._admission = AdmissionControl(self._state, self._estimates)
        running = [self._dispatcher.run(), self._feed_maintenance.run()]
        self._sweeper: Sweeper | None = None
        if retention is not None and storage is not None:
            store = ObjectStore(storage)
            self._sweeper = Sweeper(
                self._database, store, retention, self._keep_keys_s, on_deleted=self._feed.publish_deletions
            )
            running.append(self._sweeper.run())
        if webhooks is not None:
            sender = WebhookSender(self._database, webhooks, self._webhook_secret)
            self._state.on_end = sender.wake
            running.append(sender.run())
        self._running = [asyncio.get_running_loop().create_task(part) for part in running]

    async def close(self) -> None:
        """Stop working and close the database; leases stay as they are."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._dispatcher.close()
        await asyncio.to_thread(self._database.close)

    # What the ingress asks

    async def submit(self, submission: Submission) -> Acceptance:
        """Make the job durable, then answer. The same id or idempotency key again gives the same job.

        Raises:
            TooLargeError: none of the samplers has the memory for it.
            QueueFullError: as many jobs wait as may.
            RateLimitError: the tenant asked for too many videos in a minute, or for too many GPU-seconds in a day.
            IdempotencyKeyReusedError: the key belongs to another request.
            RegistryUnavailableError: the database is away or full.
            With any of them nothing was written.
        """
        await self._dispatcher.leases_known.wait()  # the waiting jobs are counted by then
        await self._feed_maintenance.begun.wait()  # the tenants and their limits are known
        refusal = await self._admission.refusal(submission)
        if refusal is not None:
            return await self._accepted_before(submission, refusal)
        with self._admission.coming(submission):
            accepted = await self._database.run(insert_job, submission, now=time.time(), keep_keys_s=self._keep_keys_s)
            if not accepted.repeated:
                self._state.follow(accepted.job)
        # Before anything else happens: a moment later it may be claimed, and have no place in the queue any more.
        job = self._as_of_now(accepted.job)
        self._feed.publish(job)
        await self._told()
        return replace(accepted, job=job)

    async def _told(self) -> None:
        """Whoever asks from now on, wherever, hears of what was written until now."""
        await self._feed_maintenance.begun.wait()
        await self._feed.flush()

    async def _accepted_before(self, submission: Submission, refusal: Exception) -> Acceptance:
        """What was accepted before, when there was room, stays accepted."""
        accepted = await self._database.run(find_accepted, submission, now=time.time(), keep_keys_s=self._keep_keys_s)
        if accepted is None:
            raise refusal
        return replace(accepted, job=self._as_of_now(accepted.job))

    async def get(self, job_id: str) -> Job | None:
        """The job with its newest progress and its place, or None."""
        job = await self._database.run(get_job, job_id)
        return None if job is None else self._as_of_now(job)

    async def list_jobs(
        self, limit: int, after: str | None = None, order: Order = "desc", wanted: JobFilter = EVERY_JOB
    ) -> JobPage:
        """A page by time of creation. Raises UnknownJobError if there is no job `after`."""
        page = await self._database.run(list_jobs, limit=limit, after=after, order=order, wanted=wanted)
        return JobPage(tuple(self._as_of_now(job) for job in page.jobs), page.has_more)

    async def health(self) -> Health:
        """Replicas that are there, jobs that wait or run, and whether the database takes a write."""
        now = time.monotonic()
        replicas = {stage: tuple(self._state.replicas.alive(stage, now)) for stage in Stage}
        try:
            await self._database.run(touch, now=time.time())
            live = await self._database.run(jobs_sql.count_live)
        except RegistryUnavailableError as error:
            return Health(replicas, {}, str(error))
        queue: dict[JobState, int] = {}
        for (state, _), count in live.items():
            queue[state] = queue.get(state, 0) + count
        return Health(replicas, queue)

    async def cancel(self, job_id: str) -> Job | None:
        """End the job; whoever works on it stops at its next step. None if it is unknown."""
        with self._unsaved(job_id) as (lease, used):
            job = await self._database.run(jobs_sql.cancel, job_id, now=time.time(), lease=lease, used=used)
        if job is None:
            return None
        self._follow_end(job)
        await self._told()
        return job

    @contextmanager
    def _unsaved(self, job_id: str) -> Iterator[tuple[str | None, Usage]]:
        """For a write that ends a job whoever holds it: its lease, and what its replica used and its row lacks."""
        lease = self._state.leases.of_job(job_id)
        if lease is None:
            yield None, Usage()
            return
        with lease.saving() as used:
            yield lease.token, used

    def _follow_end(self, job: Job) -> None:
        self._state.follow(job)
        lease = self._state.leases.of_job(job.id)
        if lease is not None and job.state is JobState.CANCELLED:
            self._state.end_lease(lease)
            self._state.tell(lease, Directive.STOP)

    async def delete(self, job_id: str, tenant: str | None) -> bool:
        """End the job and forget it; its files go soon after. False if there is none of this tenant (None: of any)."""
        with self._unsaved(job_id) as (lease, used):
            deleted = await self._database.run(
                jobs_sql.delete, job_id, tenant=tenant, now=time.time(), lease=lease, used=used
            )
        if deleted is None:
            return False
        if isinstance(deleted, Job):
            self._follow_end(deleted)
        self._feed.publish_deletions([job_id])  # again too: the answer of the first write may have been lost
        if self._sweeper is not None:
            self._sweeper.wake()
        await self._told()
        return True

    async def _webhook_secret(self, tenant: str) -> str:
        """From SQL: what is in memory may be from before a change, and receivers would refuse the event.

        Asked before each try, when the end of the job has been told everywhere: who gets the event reads it back.
        """
        await self._told()
        account = await self._database.run(access_sql.get_tenant, tenant)
        if account is not None:
            return account.webhook_secret
        return await self._database.run(access_sql.installation_webhook_secret)

    async def park(self, job_id: str) -> bool:
        """Ask the replica that samples the job to let go of it at the next step, state kept; False if none does."""
        lease = self._state.leases.of_job(job_id)
        if lease is None or lease.stage is not Stage.SAMPLING:
            return False
        self._state.tell(lease, Directive.PARK)
        return True

    async def preview(self, job_id: str) -> bytes | None:
        """The newest picture of a video that is being sampled, WebP."""
        lease = self._state.leases.of_job(job_id)
        return None if lease is None else lease.preview

    async def history(self, job_id: str) -> list[Move] | None:
        """The job's moves, None if it is unknown."""
        return await self._database.run(jobs_sql.history, job_id) or None

    async def follow(self, follower: str, cursor: Cursor) -> Batch:
        """What has changed since `cursor`; an ingress replica asks again and again."""
        await self._dispatcher.leases_known.wait()
        await self._feed_maintenance.begun.wait()
        await self._feed.wait_for_news(follower, cursor)
        self._estimates.tell(self._feed)
        return self._feed.batch_since(cursor)

    async def demand(self) -> dict[Stage, int]:
        """How many jobs run or wait in each stage, for the autoscaling policy."""
        await self._dispatcher.leases_known.wait()
        waiting = self._state.waiting.count()
        return {stage: waiting[stage] + len(self._state.leases.of_stage(stage)) for stage in Stage}

    def _as_of_now(self, job: Job) -> Job:
        return replace(self._state.as_of_now(job), place=self._estimates.place(job))

    # What the workers say

    async def announce(self, info: ReplicaInfo, wait: bool) -> dict[str, Directive]:
        """A replica is there; it calls again and again.

        Args:
            wait: hold the call open for a moment, so that a directive for the replica reaches it at once.

        Returns:
            Directives for its leases, by lease.
        """
        if self._state.replicas.announce(info, time.monotonic()):
            log.info(f"{info.stage}: replica {info.replica} on {info.device} has {info.slots} slots")
            self._state.wake.set()
        return await self._state.mailbox.collect(info.replica, HOLD_S if wait else 0)

    async def report_all(self, reports: list[Report]) -> list[Directive]:
        """Take what a replica tells of its tasks; the answers in the same order.

        All of them are taken, also if the database is away for one: no lease lapses for what another could not save.
        """
        answers = await asyncio.gather(*map(self.report, reports), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, Directive)]

    async def report(self, report: Report) -> Directive:
        """Take a worker's event. `stop` means: the lease is not yours any more; `yield`: park it at the next step."""
        await self._dispatcher.leases_known.wait()
        return await self._reports.take(report)
