"""The loop that hands out work: lapse what is silent, fill the open slots in fair order, park for urgent jobs."""

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable

from deployments.errors import RegistryUnavailableError
from deployments.messages import Directive, Stage, StageTask
from serve_app.database import jobs as jobs_sql
from serve_app.database.job_rows import get_jobs
from serve_app.errors import NoReplicaError, ReplicaDiedError
from serve_app.jobs import Job
from serve_app.registry.leases import ForeignLeases, Lease, leases_to_park
from serve_app.registry.reports import JobReports
from serve_app.registry.state import RegistryState, log
from serve_app.scheduling.fair_share import Charge

Send = Callable[[StageTask, Callable[[str], None]], Awaitable[None]]

TICK_S = 1.0
RECONCILE_S = 5.0
TAKEN_OVER_S = 10.0
FROZEN_S = 1.0


class Dispatcher:
    """Claims jobs for the open slots and sends them to replicas.

    Args:
        send: carries a task to a replica and returns when its call has ended.
        alone: no other registry can be on this database, so leases of others are those of a dead server.
    """

    def __init__(self, state: RegistryState, reports: JobReports, send: Send, alone: bool) -> None:
        self._state = state
        self._reports = reports
        self._send = send
        self._alone = alone
        self._foreign = ForeignLeases(state.settings.lease_s)
        self._calls: dict[str, Lease] = {}
        self._doubtful: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._compared_at = 0.0
        self._outranked_at = -math.inf
        self.leases_known = asyncio.Event()

    async def run(self) -> None:
        """For ever: rounds, each begun by a wake-up or after a moment."""
        await self._until_done(self._take_over)
        self.leases_known.set()
        while True:
            self._state.wake.clear()
            pause = await self._until_done(self._round)
            await self._wait(pause)

    async def _wait(self, pause: float) -> None:
        """Until there may be something to do. A registry that was frozen meanwhile has heard no report: its leases
        live on for as long."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(pause):
                await self._state.wake.wait()
        except TimeoutError:
            pass
        late = time.monotonic() - begun - pause
        if late > FROZEN_S:
            log.warning(f"the registry stood still for {late:.0f} s; leases are kept that much longer")
            self._state.leases.extend(late)

    async def close(self) -> None:
        """Let go of the calls in flight; their replicas go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def open_slots(self, stage: Stage) -> int:
        """Slots that replicas announced and no call holds, nor a lease from before a restart of the registry.

        What a replica holds beyond its slots, because it leaves or is gone, takes none from the others.
        """
        free = {info.replica: info.slots for info in self._state.replicas.alive(stage, time.monotonic())}
        unplaced = 0
        orphans = [lease for lease in self._state.leases.of_stage(stage) if lease.token not in self._calls]
        for lease in orphans + [lease for lease in self._calls.values() if lease.stage is stage]:
            if lease.replica is None:
                unplaced += 1
            elif lease.replica in free:
                free[lease.replica] -= 1
        return sum(max(0, slots) for slots in free.values()) - unplaced

    async def _until_done(self, part: Callable[[], Awaitable[float]]) -> float:
        """The outermost loop of the registry: a database that is away now is there again later."""
        while True:
            try:
                return await part()
            except Exception:
                log.exception("The registry could not go on; it tries again in a second")
                await asyncio.sleep(1)

    async def _take_over(self) -> float:
        """After a start: what this cluster leased goes on if its workers say so, what a dead one leased lapses."""
        state, now = self._state, time.monotonic()
        for job in await state.database.run(jobs_sql.last_completed, limit=200):
            state.learn_from(job)
        for job in await state.database.run(jobs_sql.leased_jobs):
            state.feed.publish(job)
            if job.lease_owner == state.owner:
                state.leases.resume(job, now, TAKEN_OVER_S)
            elif self._alone:
                await self._reports.lost(Lease.of(job, now, 0.0), "the server was stopped")
        await self._compare_waiting()
        return 0.0

    async def _round(self) -> float:
        """Returns how long to wait for a wake-up, seconds."""
        state, now = self._state, time.monotonic()
        state.replicas.prune(now)
        state.mailbox.keep_only(state.replicas.names())
        await self._undo_doubtful()
        for lease in state.leases.lapsed(now):
            await self._reports.lost(lease, f"no report for {state.settings.lease_s:g} s")
        await self._compare(now)
        for stage in Stage:
            await self._fill(stage)
        self._preempt()
        soon = state.waiting.next_in_s()
        return TICK_S if soon is None else min(TICK_S, soon)

    async def _compare(self, now: float) -> None:
        """See what another registry on the database has done; alone, only mend the mirror now and then."""
        if now - self._compared_at < (RECONCILE_S if self._alone else TICK_S):
            return
        self._compared_at = now
        if not self._alone:
            await self._compare_leases()
        await self._compare_waiting()

    async def _compare_waiting(self) -> None:
        state = self._state
        missing = state.waiting.reconcile(await state.database.run(jobs_sql.queued_ids))
        for job in await state.database.run(get_jobs, missing):
            state.follow(job, None)
        await self._compare_feed()

    async def _compare_feed(self) -> None:
        """What neither waits here nor is leased here was moved by a write whose answer was lost, or by another."""
        state = self._state
        unsure = [
            job.id for job in state.feed.live_jobs() if not (state.waiting.holds(job.id) or state.leases.of_job(job.id))
        ]
        known = {job.id: job for job in await state.database.run(get_jobs, unsure)}
        for job in known.values():
            state.feed.publish(job)
        state.feed.publish_deletions(job_id for job_id in unsure if job_id not in known)

    async def _compare_leases(self) -> None:
        state, now = self._state, time.monotonic()
        before = state.leases.all()
        leased = await state.database.run(jobs_sql.leased_jobs)
        held = {job.lease for job in leased}
        for lease in before:
            if lease.token not in held and state.leases.held(lease.job_id, lease.token) is lease:
                self._reports.lease_gone(lease)
        # Also one of our own that is not known here: its claim was on its way when the registry before was killed.
        foreign = [job for job in leased if job.lease and state.leases.held(job.id, job.lease) is None]
        for job in self._foreign.lapsed(foreign, now):
            why = f"no report to {job.lease_owner} for {state.settings.lease_s:g} s"
            await self._reports.lost(Lease.of(job, now, 0.0), why)

    async def _fill(self, stage: Stage) -> None:
        state = self._state
        taken = state.waiting.take(stage, self.open_slots(stage), self._suspects_allowed(stage))
        if not taken:
            return
        leases = {job.id: uuid.uuid4().hex for job, _ in taken}
        claimed: dict[str, Job] | None = None
        try:
            found = await state.database.run(
                jobs_sql.claim,
                stage=stage,
                leases=leases,
                owner=state.owner,
                now=time.time(),
                lease_s=state.settings.lease_s,
            )
            claimed = {job.id: job for job in found}
        except RegistryUnavailableError:
            self._doubtful |= leases
            raise
        finally:
            state.waiting.claimed(taken, None if claimed is None else set(claimed))
        for job, charge in taken:
            if job.id in claimed:
                self._begin(claimed[job.id], charge)

    async def _undo_doubtful(self) -> None:
        """A claim whose end was not told may have been written; nobody would ever work under its leases."""
        for job_id, token in list(self._doubtful.items()):
            job = await self._state.database.run(
                jobs_sql.give_back, job_id, token, now=time.time(), note="the end of its claim was not told"
            )
            self._state.follow(job)
            del self._doubtful[job_id]

    def _suspects_allowed(self, stage: Stage) -> int:
        """So many more jobs that a replica died with may run: no two on one replica, or both would be blamed."""
        replicas = sum(1 for info in self._state.replicas.alive(stage, time.monotonic()) if info.slots)
        return replicas - sum(1 for lease in self._state.leases.of_stage(stage) if lease.suspect)

    def _begin(self, job: Job, charge: Charge) -> None:
        if (ended := self._state.leases.of_job(job.id)) is not None:  # in SQL; nobody has told it here
            self._reports.lease_gone(ended)
        lease = self._state.leases.grant(job, time.monotonic(), charge)
        self._state.feed.publish(job)
        self._calls[lease.token] = lease
        task = asyncio.create_task(self._dispatch(lease))
        self._tasks.add(task)
        task.add_done_callback(self._dispatched)

    def _dispatched(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A lease could not be ended; it lapses by itself", exc_info=error)

    async def _dispatch(self, lease: Lease) -> None:
        def chosen(replica: str) -> None:
            lease.replica = replica

        job, died = lease.job, False
        task = StageTask(job.id, lease.token, lease.stage, job.attempt, job.spec, job.checkpoint_step)
        try:
            await self._send(task, chosen)
            why = "the replica ended its call without a result"
        except NoReplicaError as error:
            await self._give_back(lease, str(error))
            return
        except Exception as error:  # whatever ended the call, the lease tells whether the work was done
            why, died = f"the replica was lost ({type(error).__name__})", isinstance(error, ReplicaDiedError)
            if lease.replica is not None:
                self._state.replicas.forget(lease.replica)
        finally:
            del self._calls[lease.token]
            self._state.wake.set()
        if self._state.leases.held(job.id, lease.token) is lease:
            await self._reports.lost(lease, why, died)

    async def _give_back(self, lease: Lease, note: str) -> None:
        """The claim never reached a replica."""
        job = await self._state.database.run(jobs_sql.give_back, lease.job_id, lease.token, now=time.time(), note=note)
        self._state.end_lease(lease)
        self._state.follow(job)

    def _preempt(self) -> None:
        state, stage = self._state, Stage.SAMPLING
        urgent = state.waiting.urgent(stage) if state.scheduling.preemption else 0
        if not self._to_park(urgent) or time.monotonic() - self._outranked_at < TICK_S:
            return
        first = state.waiting.urgent_first(stage, self._suspects_allowed(stage))
        if first < urgent:
            self._outranked_at = time.monotonic()  # to tell the order of a long queue takes a while
        for lease in self._to_park(first):
            log.info(f"[{lease.job_id}] yields its slot to an interactive job")
            state.tell(lease, Directive.PARK)

    def _to_park(self, urgent: int) -> list[Lease]:
        if not urgent:
            return []
        state, stage = self._state, Stage.SAMPLING
        sampling, max_parks = state.leases.of_stage(stage), state.scheduling.max_parks
        return leases_to_park(sampling, urgent, self.open_slots(stage), max_parks)
