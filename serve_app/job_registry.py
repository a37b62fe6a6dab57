"""The detached actor that every job goes through: it accepts, leases, takes reports, retries and ends.

SQL is the truth (`job_store`); what is in memory here can be lost at any moment. Killed, the actor starts again from
SQL: leases that its workers still renew go on, the others lapse and their jobs return to the queue.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

from deployments.messages import (
    Checkpointed,
    Directive,
    Failed,
    Finished,
    Parked,
    Progress,
    ReplicaInfo,
    Report,
    Stage,
    StageTask,
    Started,
    VideoSpec,
)
from serve_app import job_store
from serve_app.config import JobSettings
from serve_app.database import Database
from serve_app.errors import NoReplicaError, TooLargeError
from serve_app.fitting import memory_limit, sample_tokens
from serve_app.job_store import Order
from serve_app.jobs import Health, Job, JobError, JobPage, JobState, overall_progress, retry_pause
from serve_app.leases import Lease, LeaseTable, Mailbox, ReplicaTable

log = logging.getLogger("ray.serve")

Send = Callable[[StageTask, Callable[[str], None]], Awaitable[None]]

TICK_S = 1.0
FORGET_REPLICA_S = 10.0
HOLD_S = 2.0
TAKEN_OVER_S = 10.0
OUTAGE_PAUSE_S = 2.0
# Not the job's fault and not the replica's: no attempt is counted, however long it lasts.
OUTAGES = frozenset({"storage_unavailable", "replica_unhealthy"})


class JobRegistry:
    """Accepts jobs, hands their stages to replicas with open slots, and takes the workers' reports.

    Args:
        database_url: SQLAlchemy URL, SQLite or Postgres.
        settings: leases and retries.
        owner: name of this cluster in the leases, the same after a restart of the actor.
        send: carries a task to a replica and returns when its call has ended.
    """

    def __init__(self, database_url: str, settings: JobSettings, owner: str, send: Send) -> None:
        self._settings = settings
        self._owner = owner
        self._send = send
        self._database = Database(database_url)
        self._alone = database_url.startswith("sqlite")
        self._leases = LeaseTable(settings.lease_s)
        self._replicas = ReplicaTable(FORGET_REPLICA_S)
        self._mailbox = Mailbox()
        self._calls: dict[str, Stage] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._leases_known = asyncio.Event()
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop working and close the database; leases stay as they are."""
        tasks = [self._running, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._database.close)

    # What the ingress asks

    async def submit(self, job_id: str, model: str, spec: VideoSpec) -> Job:
        """Make the job durable, then answer. The same id again gives the same job.

        Raises:
            TooLargeError: none of the samplers has the memory for it; nothing was written.
        """
        await self._check_memory(job_id, spec)
        job = await self._database.run(job_store.insert_job, job_id, model, spec, time.time())
        self._wake.set()
        return job

    async def _check_memory(self, job_id: str, spec: VideoSpec) -> None:
        """What was accepted before, when the limit was not known, stays accepted."""
        tokens, limit = sample_tokens(spec), memory_limit(self._replicas.alive(Stage.SAMPLING, time.monotonic()))
        if limit is None or tokens <= limit:
            return
        if await self._database.run(job_store.get_job, job_id) is None:
            raise TooLargeError(tokens, limit)

    async def get(self, job_id: str) -> Job | None:
        """The job with its newest progress, or None."""
        job = await self._database.run(job_store.get_job, job_id)
        return None if job is None else self._with_progress(job)

    async def list_jobs(self, limit: int, after: str | None = None, order: Order = "desc") -> JobPage:
        """A page by time of creation. Raises UnknownJobError if there is no job `after`."""
        page = await self._database.run(job_store.list_jobs, limit, after, order)
        return JobPage(tuple(self._with_progress(job) for job in page.jobs), page.has_more)

    async def health(self) -> Health:
        """Replicas that are there and jobs that wait or run."""
        now = time.monotonic()
        queue: dict[JobState, int] = {}
        for (state, _), count in (await self._database.run(job_store.count_live)).items():
            queue[state] = queue.get(state, 0) + count
        return Health({stage: tuple(self._replicas.alive(stage, now)) for stage in Stage}, queue)

    async def cancel(self, job_id: str) -> Job | None:
        """End the job; whoever works on it stops at its next step. None if it is unknown."""
        lease = self._leases.of_job(job_id)
        job = await self._database.run(job_store.cancel, job_id, time.time())
        if lease is not None and job is not None and job.state is JobState.CANCELLED:
            self._leases.drop(lease)
            self._tell(lease, Directive.STOP)
        return job

    async def park(self, job_id: str) -> bool:
        """Ask the replica that samples the job to let go of it at the next step, state kept; False if none does."""
        lease = self._leases.of_job(job_id)
        if lease is None or lease.stage is not Stage.SAMPLING:
            return False
        lease.directive = Directive.YIELD
        self._tell(lease, Directive.YIELD)
        return True

    async def preview(self, job_id: str) -> bytes | None:
        """The newest picture of a video that is being sampled, WebP."""
        lease = self._leases.of_job(job_id)
        return None if lease is None else lease.preview

    def _tell(self, lease: Lease, directive: Directive) -> None:
        if lease.replica is not None:
            self._mailbox.post(lease.replica, lease.token, directive)

    async def history(self, job_id: str) -> list[tuple[float, str, str]]:
        """The job's moves: time, state, note."""
        return await self._database.run(job_store.history, job_id)

    async def demand(self) -> dict[Stage, int]:
        """How many jobs run or wait in each stage, for the autoscaling policy."""
        total = dict.fromkeys(Stage, 0)
        for (_, stage), count in (await self._database.run(job_store.count_live)).items():
            total[stage] += count
        return total

    # What the workers say

    async def announce(self, info: ReplicaInfo, wait: bool) -> dict[str, Directive]:
        """A replica is there; it calls again and again.

        Args:
            wait: hold the call open for a moment, so that a directive for the replica reaches it at once.

        Returns:
            Directives for its leases, by lease.
        """
        if self._replicas.announce(info, time.monotonic()):
            log.info(f"{info.stage}: replica {info.replica} is ready on {info.device}, {info.slots} slots")
            self._wake.set()
        return await self._mailbox.collect(info.replica, HOLD_S if wait else 0)

    async def report_all(self, reports: list[Report]) -> list[Directive]:
        """Take what a replica tells of its tasks; the answers in the same order."""
        return [await self.report(report) for report in reports]

    async def report(self, report: Report) -> Directive:
        """Take a worker's event. `stop` means: the lease is not yours any more; `yield`: park it at the next step."""
        await self._leases_known.wait()
        lease = self._leases.held(report.job_id, report.lease)
        if lease is None:
            return Directive.STOP
        self._leases.renew(lease, time.monotonic())
        match report.event:
            case Started(replica, device):
                lease.replica = replica
                if not lease.begun:
                    lease.begun = True
                    log.info(f"[{lease.job_id}] {lease.stage} on {replica} ({device})")
            case Progress() as event:
                await self._progress(lease, event)
            case Checkpointed(step):
                await self._database.run(job_store.keep_checkpoint, lease.job_id, lease.token, step)
            case Parked() as event:
                await self._parked(lease, event)
            case Finished() as event:
                await self._finish(lease, event)
            case Failed() as event:
                await self._attempt_failed(lease, event)
        return lease.directive

    async def _progress(self, lease: Lease, event: Progress) -> None:
        if lease.stage is Stage.SAMPLING:
            if not lease.stepped:  # a refused checkpoint makes the replica begin earlier than was thought
                lease.stepped, lease.counted_step = True, min(lease.counted_step, event.begun_at)
            lease.step = event.done
        lease.preview = event.preview or lease.preview
        lease.progress = overall_progress(lease.stage, event.done, event.total)
        now = time.monotonic()
        if self._leases.needs_saving(lease, now):
            lease.saved_at = now
            expires = time.time() + self._settings.lease_s
            saved = (lease.job_id, lease.token, expires, lease.step, lease.progress, lease.uncounted_steps)
            lease.counted_step = lease.step
            await self._database.run(job_store.renew, *saved)

    async def _parked(self, lease: Lease, event: Parked) -> None:
        lease.step = event.step
        kept = (lease.job_id, lease.token, time.time(), event.step, lease.uncounted_steps, f"parked: {event.reason}")
        job = await self._database.run(job_store.park, *kept)
        self._leases.drop(lease)
        self._wake.set()
        if job is not None:
            log.info(f"[{job.id}] parked at step {event.step}: {event.reason}")

    async def _finish(self, lease: Lease, event: Finished) -> None:
        ended = (lease.job_id, lease.token, event.seconds, time.time())
        job = await self._database.run(job_store.finish_stage, *ended, await self._steps_to_count(lease))
        self._leases.drop(lease)
        self._wake.set()
        if job is not None:
            log.info(f"[{job.id}] {lease.stage} done, now {job.state}")

    async def _steps_to_count(self, lease: Lease) -> int:
        """A sampler that is done has run all steps, whatever its last report said."""
        if lease.stage is not Stage.SAMPLING:
            return 0
        job = await self._database.run(job_store.get_job, lease.job_id)
        lease.step = lease.step if job is None else job.spec.num_inference_steps
        return lease.uncounted_steps

    # Attempts that did not succeed

    async def _attempt_failed(self, lease: Lease, event: Failed) -> None:
        """Decide between another attempt and the end; either is one transaction."""
        job = await self._database.run(job_store.get_job, lease.job_id)
        if job is not None and job.lease == lease.token:
            error = self._final_error(job, event)
            if error is None:
                await self._try_again(job, lease, event)
            else:
                await self._database.run(job_store.fail, job.id, lease.token, time.time(), error)
                log.error(f"[{job.id}] failed: {error.code}: {error.message}")
        self._leases.drop(lease)
        self._wake.set()

    async def _try_again(self, job: Job, lease: Lease, event: Failed) -> None:
        attempt, pause = job.attempt, OUTAGE_PAUSE_S
        if event.code not in OUTAGES:
            attempt += 1
            pause = retry_pause(attempt, self._settings.retry_pause_s, self._settings.max_retry_pause_s)
        now, note = time.time(), f"{event.code}: {event.message}"
        again = (job.id, lease.token, now, now + pause, note, attempt, lease.uncounted_steps)
        await self._database.run(job_store.retry, *again)
        log.warning(f"[{job.id}] {lease.stage} did not succeed ({note}); again in {pause:.1f} s as attempt {attempt}")

    def _final_error(self, job: Job, event: Failed) -> JobError | None:
        if not event.transient:
            return JobError(event.code, event.message)
        if event.code in OUTAGES or job.attempt < self._settings.max_attempts:
            return None
        return JobError(event.code, f"{event.message} (attempt {job.attempt} of {job.attempt}, the last one)")

    async def _lost(self, lease: Lease, why: str) -> None:
        await self._attempt_failed(lease, Failed("replica_lost", why, transient=True))

    # Handing out work

    async def _run(self) -> None:
        await self._until_done(self._take_over)
        self._leases_known.set()
        while True:
            self._wake.clear()
            pause = await self._until_done(self._round)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _until_done(self, part: Callable[[], Awaitable[float]]) -> float:
        """The outermost loop of the registry: a database that is away now is there again later."""
        while True:
            try:
                return await part()
            except Exception:
                log.exception("The registry could not go on; it tries again in a second")
                await asyncio.sleep(1)

    async def _take_over(self) -> float:
        """After a start: what this cluster leased goes on for one more lease, what a dead one leased lapses."""
        now = time.monotonic()
        for job in await self._database.run(job_store.leased_jobs):
            if job.lease is None:
                continue
            lease = Lease(job.id, job.lease, job.stage, now, now)
            if job.lease_owner == self._owner:
                going_on = self._leases.grant(job.id, job.lease, job.stage, now, job.step, job.progress)
                going_on.begun = going_on.stepped = True
                # A worker that has it says so within a heartbeat; perhaps the task was never sent.
                going_on.deadline = now + min(TAKEN_OVER_S, self._settings.lease_s)
            elif self._alone:
                await self._lost(lease, "the server was stopped")
        return 0.0

    async def _round(self) -> float:
        """Lapse, then fill the open slots. Returns how long to wait for a wake-up, seconds."""
        now = time.monotonic()
        self._replicas.prune(now)
        for lease in self._leases.lapsed(now):
            await self._lost(lease, f"no report for {self._settings.lease_s:g} s")
        if not self._alone:
            await self._lapse_foreign()
        for stage in Stage:
            await self._fill(stage)
        waits_until = await self._database.run(job_store.next_available_at)
        if waits_until is None or waits_until <= time.time():
            return TICK_S
        return min(TICK_S, waits_until - time.time())

    async def _lapse_foreign(self) -> None:
        for job in await self._database.run(job_store.foreign_lapsed_jobs, self._owner, time.time()):
            if job.lease is not None:
                lease = Lease(job.id, job.lease, job.stage, 0, 0)
                await self._lost(lease, f"no report to {job.lease_owner} for {self._settings.lease_s:g} s")

    async def _fill(self, stage: Stage) -> None:
        open_slots = self._replicas.slots(stage, time.monotonic()) - self._busy(stage)
        if open_slots <= 0:
            return
        tokens = [uuid.uuid4().hex for _ in range(open_slots)]
        claim = (stage, tokens, self._owner, time.time(), self._settings.lease_s)
        for job in await self._database.run(job_store.claim, *claim):
            assert job.lease is not None
            granted = (job.id, job.lease, stage, time.monotonic(), job.step, job.progress)
            lease = self._leases.grant(*granted)
            self._calls[job.lease] = stage
            task = asyncio.create_task(self._dispatch(job, lease))
            self._tasks.add(task)
            task.add_done_callback(self._dispatched)

    def _dispatched(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A lease could not be ended; it lapses by itself", exc_info=error)

    def _busy(self, stage: Stage) -> int:
        """Calls in flight, and leases from before a restart whose calls belong to nobody."""
        orphans = sum(1 for lease in self._leases.of_stage(stage) if lease.token not in self._calls)
        return orphans + sum(1 for called in self._calls.values() if called is stage)

    async def _dispatch(self, job: Job, lease: Lease) -> None:
        def chosen(replica: str) -> None:
            lease.replica = replica

        task = StageTask(job.id, lease.token, lease.stage, job.attempt, job.spec, job.checkpoint_step)
        try:
            await self._send(task, chosen)
            why = "the replica ended its call without a result"
        except NoReplicaError as error:
            await self._give_back(lease, str(error))
            return
        except Exception as error:  # whatever ended the call, the lease tells whether the work was done
            why = f"the replica was lost ({type(error).__name__})"
            if lease.replica is not None:
                self._replicas.forget(lease.replica)
        finally:
            del self._calls[lease.token]
            self._wake.set()
        if self._leases.held(job.id, lease.token) is lease:
            await self._lost(lease, why)

    async def _give_back(self, lease: Lease, note: str) -> None:
        await self._database.run(job_store.give_back, lease.job_id, lease.token, time.time(), note)
        self._leases.drop(lease)

    def _with_progress(self, job: Job) -> Job:
        lease = self._leases.of_job(job.id)
        if lease is None or lease.token != job.lease:
            return job
        return replace(job, step=lease.step, progress=lease.progress)
