"""The detached actor that every job goes through: from its acceptance to the reports of its workers.

SQL is the truth (`serve_app/database/jobs`); what is in memory (`state`) can be lost at any moment. Killed, the
actor starts again from SQL: leases that its workers still renew go on, the others lapse and their
jobs return to the queue.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from deployments.background import keep_running
from deployments.errors import RegistryUnavailableError
from deployments.logs.ids import log_ids
from deployments.logs.lines import NOTICE
from deployments.messages import STEPPED, Directive, ReplicaInfo, Report, Stage
from deployments.metrics.recorder import Series, Snapshot, Value
from deployments.settings import StorageSettings, TracingSettings
from deployments.storage.object_store import ObjectStore
from deployments.tracing.context import context_of_job
from deployments.tracing.tracer import TRACER
from serve_app.access.secret_box import WebhookKey
from serve_app.access.tenants import AccessTable
from serve_app.config import (
    HOUR_S,
    AccessSettings,
    JobSettings,
    MetricsSettings,
    RetentionSettings,
    SchedulingSettings,
    WebhookSettings,
)
from serve_app.database import access as access_sql
from serve_app.database.connection import Database
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs import moves as moves_sql
from serve_app.database.jobs import overview as overview_sql
from serve_app.database.jobs.intake import find_accepted, insert_job
from serve_app.database.jobs.listing import list_jobs
from serve_app.database.jobs.rows import read_job
from serve_app.database.meta import touch
from serve_app.feed.publisher import Batch, Cursor
from serve_app.jobs import (
    EVERY_VIDEO,
    NOTHING_EXPIRES,
    Acceptance,
    Expiry,
    Health,
    Job,
    JobFilter,
    JobPage,
    JobState,
    Move,
    Order,
    Submission,
)
from serve_app.registry.deadlines import Deadlines
from serve_app.registry.dispatcher import Dispatcher, Send
from serve_app.registry.feed_maintenance import FeedMaintenance
from serve_app.registry.job_traces import JobTraces
from serve_app.registry.lost_attempts import LostAttempts
from serve_app.registry.metrics import RegistryMetrics
from serve_app.registry.planning.admission import AdmissionControl
from serve_app.registry.planning.capacity_plan import CapacityPlan
from serve_app.registry.planning.queue_estimates import QueueEstimates
from serve_app.registry.reports import JobReports
from serve_app.registry.state import RegistryState, StateSnapshot, log
from serve_app.registry.timing import RegistryTiming
from serve_app.registry_api import RegistryApi
from serve_app.retention.sweeper import Sweeper
from serve_app.scheduling.activity import Activity
from serve_app.scheduling.scaling.capacity import StageNeed, StageState
from serve_app.webhooks.sender import WebhookSender

OPEN = AccessSettings()
METRICS = MetricsSettings()
UNTRACED = TracingSettings()
NO_KEY = WebhookKey()


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """What a registry has in memory at a moment."""

    state: StateSnapshot
    calls: Mapping[str, str]  # job id, by the token of the lease: tasks that are with a replica or on the way to one
    unconfirmed_claims: Mapping[str, str]  # token, by job id: SQL did not say whether the claim was written
    reserved_s: Mapping[str, float]  # estimated GPU-seconds of jobs that are being written, by tenant


class JobRegistry(RegistryApi):
    """What the ingress asks for and the workers report; the methods are described in RegistryApi.

    Args:
        database_url: SQLAlchemy URL, SQLite or Postgres.
        jobs: leases and retries.
        scheduling: the order of the jobs.
        owner: name of this cluster in the leases, the same after a restart of the actor.
        send: carries a task to a replica and returns when its call has ended.
        retention: how long jobs and files are kept; nothing is swept without.
        storage: where the files are; nothing is swept without.
        webhooks: how ends of jobs are sent; without, they wait in the database.
        webhook_key: what the secrets that sign them are encrypted with.
        access: whether requests need keys.
        metrics: how many tenants are told apart.
        tracing: where spans go.
        settings_digest: of all of these, as whoever starts it counts them.
        was_restarted: whether there was a registry of this owner before, which ingress replicas may
            still follow.
        watch: called once; has this process replaced when it hangs.
        begin_log: called first; has this process write its log as the settings say.
        timing: how long its parts wait.
        open_database: makes the database of a URL.
        unix_time: the wall clock.
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
        webhook_key: WebhookKey = NO_KEY,
        access: AccessSettings = OPEN,
        metrics: MetricsSettings = METRICS,
        tracing: TracingSettings = UNTRACED,
        settings_digest: str = "",
        was_restarted: Callable[[], bool] = lambda: False,
        watch: Callable[[], object] = lambda: None,
        begin_log: Callable[[], object] = lambda: None,
        timing: RegistryTiming = RegistryTiming(),
        open_database: Callable[[str], Database] = Database,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        begin_log()
        self._watched = watch()
        TRACER.start(tracing, "registry")
        self._settings_digest = settings_digest
        self._retention = retention
        self._keep_keys_s = jobs.idempotency_h * HOUR_S
        self._database = open_database(database_url)
        self._state = RegistryState(
            database=self._database,
            settings=jobs,
            scheduling=scheduling,
            owner=owner,
            alone=database_url.startswith("sqlite"),
            restarted=was_restarted(),
            timing=timing,
            unix_time=unix_time,
        )
        self._feed = self._state.feed
        lost_attempts = LostAttempts(self._state)
        self._reports = JobReports(self._state, lost_attempts)
        self._dispatcher = Dispatcher(self._state, lost_attempts, send)
        self._deadlines = Deadlines(self._state, self._dispatcher.ready)
        self._feed_maintenance = FeedMaintenance(self._state, access.mode)
        self._estimates = QueueEstimates(self._state)
        self._capacity = CapacityPlan(self._state)
        self._admission = AdmissionControl(self._state, self._estimates)
        self._metrics = RegistryMetrics(self._state, metrics)
        self._traces = JobTraces(self._state)
        self._state.on_final = self._note_end
        background = [self._dispatcher.run, self._deadlines.run, self._feed_maintenance.run, self._metrics.run]
        self._webhook_key = webhook_key
        self._sweeper: Sweeper | None = None
        if retention is not None and storage is not None:
            store = ObjectStore(storage)
            self._sweeper = Sweeper(
                self._database,
                store,
                retention,
                self._keep_keys_s,
                clock=unix_time,
                on_deleted=self._feed.publish_deletions,
            )
            background.append(self._sweeper.run)
        if webhooks is not None:
            sender = WebhookSender(self._database, webhooks, self.webhook_secret, self._seal_webhook_secrets)
            self._state.on_job_end = sender.wake
            background.append(sender.run)
        loop = asyncio.get_running_loop()
        self._background = [loop.create_task(keep_running(run, run.__qualname__, log)) for run in background]

    async def close(self) -> None:
        """Stop working and close the database; leases stay as they are."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._dispatcher.close()
        await self._traces.close()
        await asyncio.to_thread(self._database.close)

    def _note_end(self, job: Job) -> None:
        self._metrics.note_end(job)
        self._traces.note_end(job)

    async def settings_digest(self) -> str:
        """Of the settings that it runs with, so that a deploy sees whether they are still right."""
        return self._settings_digest

    def snapshot(self) -> RegistrySnapshot:
        """For tests and for people: what is in memory now."""
        return RegistrySnapshot(
            state=self._state.snapshot(),
            calls={token: lease.job_id for token, lease in self._dispatcher.calls.items()},
            unconfirmed_claims=dict(self._dispatcher.unconfirmed_claims),
            reserved_s=dict(self._admission.reserved_s),
        )

    # What the ingress asks for

    async def submit(self, submission: Submission) -> Acceptance:
        context = context_of_job(submission.job_id, submission.traceparent)
        with (
            log_ids(job=submission.job_id, tenant=submission.tenant, trace=lambda: context),
            TRACER.begin("accept", context, {"mochi_serve.job.id": submission.job_id}),
        ):
            return await self._submit(submission)

    async def _submit(self, submission: Submission) -> Acceptance:
        await self._dispatcher.ready.wait()  # the waiting jobs are counted by then
        await self._feed_maintenance.ready.wait()  # the tenants and their limits are known
        decided = await self._admission.decide(submission)
        if isinstance(decided, Exception):
            return await self._earlier_acceptance(submission, decided)
        now = self._state.unix_time()
        with self._admission.reserving(decided):
            accepted = await self._database.run(
                insert_job, decided, now=now, keep_keys_s=self._keep_keys_s, expiry=self._expiry
            )
            if not accepted.repeated:
                self._state.update_job(accepted.job)
                self._deadlines.note(accepted.job)
                self._capacity.note_arrival(accepted.job)
        # Before anything else happens: a moment later it may be claimed, and have no place in the
        # queue any more.
        job = self._as_of_now(accepted.job)
        if not accepted.repeated:
            self._metrics.note_forecast(job)
        self._feed.publish(job)  # again, for a repeated one: the answer to the write that made it may have been lost
        await self._flush_feed()
        return replace(accepted, job=job)

    async def _earlier_acceptance(self, submission: Submission, refusal: Exception) -> Acceptance:
        """What was accepted before stays accepted; anything else raises the refusal."""
        now = self._state.unix_time()
        accepted = await self._database.run(
            find_accepted, submission, now=now, keep_keys_s=self._keep_keys_s, expiry=self._expiry
        )
        if accepted is None:
            raise refusal
        return replace(accepted, job=self._as_of_now(accepted.job))

    async def _flush_feed(self) -> None:
        """Whoever asks from now on, at any ingress replica, sees what was written until now."""
        await self._feed_maintenance.ready.wait()
        await self._feed.flush()

    @property
    def _expiry(self) -> Expiry:
        """Which jobs have expired by now."""
        return NOTHING_EXPIRES if self._retention is None else Expiry.at(self._retention, self._state.unix_time())

    async def get(self, job_id: str) -> Job | None:
        job = await self._database.run(read_job, job_id, expiry=self._expiry)
        return None if job is None else self._as_of_now(job)

    async def list_jobs(
        self, limit: int, after: str | None = None, order: Order = "desc", wanted: JobFilter = EVERY_VIDEO
    ) -> JobPage:
        wanted = replace(wanted, expiry=self._expiry)
        page = await self._database.run(list_jobs, limit=limit, after=after, order=order, wanted=wanted)
        return JobPage(tuple(self._as_of_now(job) for job in page.jobs), page.has_more)

    async def health(self) -> Health:
        now = time.monotonic()
        replicas = {stage: tuple(self._state.replicas.alive(stage, now)) for stage in Stage}
        try:
            await self._database.run(touch, now=self._state.unix_time())
            live = await self._database.run(overview_sql.count_live)
        except RegistryUnavailableError as error:
            return Health(replicas, {}, error.message, error.detail, self._capacity.starting())
        queue: dict[JobState, int] = {}
        for (state, _), count in live.items():
            queue[state] = queue.get(state, 0) + count
        return Health(replicas, queue, starting=self._capacity.starting())

    async def activity(self) -> Activity:
        return self._state.activity(self._capacity.starting(), self._metrics.gpus())

    async def metrics(self) -> dict[Series, Value]:
        return await self._metrics.values()

    async def cancel(self, job_id: str) -> Job | None:
        now = self._state.unix_time()
        async with self._state.unsaved_usage(job_id) as (lease, used):
            job = await self._database.run(cancellation_sql.cancel, job_id, now=now, lease=lease, used=used)
        if job is None:
            return None
        self._state.take_over_end(job)
        await self._flush_feed()
        return job

    async def delete(self, job_id: str, tenant: str | None) -> bool:
        now = self._state.unix_time()
        async with self._state.unsaved_usage(job_id) as (lease, used):
            deleted = await self._database.run(
                cancellation_sql.delete, job_id, tenant=tenant, now=now, expiry=self._expiry, lease=lease, used=used
            )
        if deleted is None:
            return False
        if isinstance(deleted, Job):
            self._state.take_over_end(deleted)
        self._feed.publish_deletions([job_id])  # repeated too: the answer to the first write may have been lost
        if self._sweeper is not None:
            self._sweeper.wake()
        await self._flush_feed()
        return True

    async def webhook_secret(self, tenant: str) -> str:
        """The secret that signs the tenant's webhooks.

        It is read from SQL: what is in memory may be from before a change, and receivers would
        refuse the event. It is asked for before each try, and returned when all followers know of
        the end of the job: who gets the event reads the job back.
        """
        await self._flush_feed()
        box = await asyncio.to_thread(self._webhook_key.box)
        account = await self._database.run(access_sql.get_tenant, tenant)
        if account is not None:
            return box.open(account.webhook_secret, tenant)
        kept = await self._database.run(access_sql.installation_webhook_secret, box=box)
        return box.open(kept, access_sql.INSTALLATION)

    async def _seal_webhook_secrets(self) -> None:
        box = await asyncio.to_thread(self._webhook_key.box)
        if lost := await self._database.run(access_sql.seal_webhook_secrets, box=box):
            log.error(f"webhooks: these secrets cannot be read with the key that is there now: {', '.join(lost)}")

    async def park(self, job_id: str) -> bool:
        lease = self._state.leases.of_job(job_id)
        if lease is None or lease.stage not in STEPPED:
            return False
        self._state.send_directive(lease, Directive.PARK)
        return True

    async def preview(self, job_id: str) -> bytes | None:
        lease = self._state.leases.of_job(job_id)
        return None if lease is None else lease.preview

    async def history(self, job_id: str) -> list[Move] | None:
        return await self._database.run(moves_sql.history, job_id, expiry=self._expiry) or None

    async def poll_feed(self, follower: str, cursor: Cursor) -> Batch:
        await self._dispatcher.ready.wait()
        await self._feed_maintenance.ready.wait()
        await self._feed.wait_for_news(follower, cursor)
        self._estimates.publish(self._feed)
        return self._feed.batch_since(cursor)

    async def refresh_access(self) -> int:
        await self._feed_maintenance.ready.wait()
        return await self._feed_maintenance.refresh_access()

    async def poll_access(self, version: int) -> AccessTable | None:
        await self._feed_maintenance.ready.wait()
        return await self._feed_maintenance.access_after(version)

    async def capacity(self, state: StageState) -> StageNeed:
        await self._dispatcher.ready.wait()
        return await self._capacity.need(state)

    def _as_of_now(self, job: Job) -> Job:
        return replace(self._state.as_of_now(job), place=self._estimates.place(job))

    # What the workers report

    async def announce(self, info: ReplicaInfo, wait: bool) -> dict[str, Directive]:
        now = time.monotonic()
        if info.replica not in self._state.replicas.names():
            self._capacity.note_ready(info, now)
        if self._state.replicas.announce(info, now):
            why = f": {info.problem}" if info.problem else ""
            room = "1 slot" if info.slots == 1 else f"{info.slots} slots"
            does = f"has {room}" if info.slots else "takes no more tasks"
            log.info(f"{info.stage}: replica {info.replica} on {info.device} {does}{why}", extra=NOTICE)
            self._state.wake.set()
        return await self._state.mailbox.collect(info.replica, self._state.timing.directive_hold_s if wait else 0)

    async def push_metrics(self, snapshot: Snapshot) -> None:
        self._metrics.hear(snapshot)

    async def report_all(self, reports: list[Report]) -> list[Directive]:
        # All of them are handled, also if the database is away for one: a lease must not lapse
        # because another one could not be saved.
        answers = await asyncio.gather(*map(self.report, reports), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, Directive)]

    async def report(self, report: Report) -> Directive:
        await self._dispatcher.ready.wait()
        return await self._reports.handle(report)
