"""The loop that hands out work: lapse leases, fill open slots in fair order, park for urgent jobs."""

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType

from deployments.background import run_forever, wait_for
from deployments.errors import RegistryUnavailableError
from deployments.messages import STEPPED, Directive, Stage, StageTask
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import overview as overview_sql
from serve_app.database.jobs.rows import get_jobs
from serve_app.errors import NoReplicaError, ReplicaDiedError
from serve_app.jobs import Job, JobState, Tier
from serve_app.registry.leases import ForeignLeases, Lease, leases_to_park
from serve_app.registry.lost_attempts import LostAttempts
from serve_app.registry.state import RegistryState, log
from serve_app.scheduling.fair_share import Charge
from serve_app.scheduling.room import Room

PREEMPTIBLE = tuple(stage for stage in Stage if stage in STEPPED)
Send = Callable[[StageTask, Callable[[str], bool]], Awaitable[None]]
"""Carries a task to a replica to which the function says yes, returns when the call has ended."""


class Dispatcher:
    """Claims jobs for the open slots and sends them to replicas.

    Args:
        state: shared with the other parts of the registry.
        lost_attempts: ends leases under which nothing more is done.
        send: carries a task to a replica.
    """

    def __init__(self, state: RegistryState, lost_attempts: LostAttempts, send: Send) -> None:
        self.ready = asyncio.Event()  # set when the leases from before the start are in memory
        self._state = state
        self._timing = state.timing.dispatch
        self._lost_attempts = lost_attempts
        self._send = send
        self._foreign_leases = ForeignLeases(state.settings.lease_s)
        self._calls: dict[str, Lease] = {}  # by token: tasks that are with a replica or on the way to one
        self._call_tasks: set[asyncio.Task[None]] = set()
        self._unconfirmed_claims: dict[str, str] = {}  # token by job id: SQL did not say whether the claim was written
        self._reconciled_at = 0.0
        self._clearing: dict[Stage, str] = {}  # the replica that is given nothing more until a suspect has it
        self._outranked_at = dict.fromkeys(PREEMPTIBLE, -math.inf)  # an urgent job was last found not to be next

    @property
    def calls(self) -> Mapping[str, Lease]:
        """The leases whose tasks are with a replica or on the way to one, by token."""
        return MappingProxyType(self._calls)

    @property
    def unconfirmed_claims(self) -> Mapping[str, str]:
        """The tokens of claims of which nobody knows whether they were written, by job id."""
        return MappingProxyType(self._unconfirmed_claims)

    async def run(self) -> None:
        """Hand out work for ever."""
        await run_forever(self._work, "handing out jobs", log, self._timing.retry_s)

    async def close(self) -> None:
        """Let go of the calls in flight; their replicas go on."""
        for task in self._call_tasks:
            task.cancel()
        await asyncio.gather(*self._call_tasks, return_exceptions=True)

    def room(self, stage: Stage) -> Room:
        """What replicas announced and no call holds, nor a lease from before a restart."""
        return self._room_beside(stage, self._at_work(stage))

    def _room_beside(self, stage: Stage, at_work: Iterable[Lease]) -> Room:
        slots = {info.replica: info.slots for info in self._state.replicas.alive(stage, time.monotonic())}
        return Room.of(slots, (lease.replica for lease in at_work), self._closed(stage))

    def _at_work(self, stage: Stage) -> list[Lease]:
        """What replicas work on, as far as is known here."""
        orphans = [lease for lease in self._state.leases.of_stage(stage) if lease.token not in self._calls]
        return orphans + [lease for lease in self._calls.values() if lease.stage is stage]

    def _closed(self, stage: Stage) -> set[str]:
        """The replicas that are given nothing: a suspect has one to itself, or is to have it."""
        closed = {lease.replica for lease in self._state.leases.of_stage(stage) if lease.alone and lease.replica}
        return closed | {replica for of, replica in self._clearing.items() if of is stage}

    async def _work(self) -> float:
        """One round and the wait for the next one. Returns the further pause, which is none."""
        if not self.ready.is_set():
            await self._take_over()
            self.ready.set()
        self._state.wake.clear()
        pause_s = await self._round()
        begun_at = time.monotonic()
        await wait_for(self._state.wake, pause_s)
        late_s = time.monotonic() - begun_at - pause_s
        if late_s > self._timing.frozen_s:  # while the process stood still no report could arrive
            log.warning(f"the registry stood still for {late_s:.0f} s; leases are kept that much longer")
            self._state.leases.extend_all(late_s)
        return 0.0

    async def _take_over(self) -> None:
        """After a start: leases of this cluster go on if their workers say so, those of a dead one lapse."""
        state = self._state
        now = time.monotonic()
        for job in reversed(await state.database.run(overview_sql.last_completed, limit=200)):
            state.learn_costs_of_job(job)
        for job in await state.database.run(overview_sql.leased_jobs):
            state.feed.publish(job)
            if job.lease_owner == state.owner:
                state.leases.resume(job, now, self._timing.takeover_s)
            elif state.alone:
                await self._lost_attempts.lose(Lease.from_row(job, now, 0.0), "the server was stopped")
        await self._reconcile_waiting()

    async def _round(self) -> float:
        """Returns how long to wait for a wake-up, seconds."""
        state = self._state
        now = time.monotonic()
        state.replicas.prune(now)
        state.mailbox.keep_only(state.replicas.names())
        await self._undo_unconfirmed_claims()
        for lease in state.leases.lapsed(now):
            RECORDER.count(names.LEASES_LAPSED)
            await self._lost_attempts.lose(lease, f"no report for {state.settings.lease_s:g} s")
        await self._reconcile(now)
        for stage in Stage:
            self._clear_replica(stage)
            await self._fill_slots(stage)
        for stage in PREEMPTIBLE:
            self._preempt(stage)
        pause_ends_in_s = state.waiting.next_pause_ends_in_s()
        return self._timing.tick_s if pause_ends_in_s is None else min(self._timing.tick_s, pause_ends_in_s)

    # Comparing memory with SQL

    async def _reconcile(self, now: float) -> None:
        """See what another registry on the database did; alone, only mend the mirror now and then."""
        alone = self._state.alone
        if now - self._reconciled_at < (self._timing.reconcile_s if alone else self._timing.tick_s):
            return
        self._reconciled_at = now
        if not alone:
            await self._reconcile_leases()
        await self._reconcile_waiting()

    async def _reconcile_waiting(self) -> None:
        state = self._state
        missing = state.waiting.reconcile(await state.database.run(overview_sql.queued_ids))
        for job in await state.database.run(get_jobs, missing):
            lease = state.leases.of_job(job.id)
            if job.state is JobState.QUEUED and lease is not None:
                state.stop_lost_lease(lease)  # it has ended; the answer to that write was lost
            state.update_job(job, None)
        # What neither waits here nor is leased here was moved by a write whose answer was lost, or
        # by another registry.
        unsure = [
            job.id
            for job in state.feed.live_jobs()
            if job.id not in state.waiting and state.leases.of_job(job.id) is None
        ]
        found = await state.database.run(get_jobs, unsure)
        for job in found:
            state.feed.publish(job)
        state.feed.publish_deletions(set(unsure) - {job.id for job in found})

    async def _reconcile_leases(self) -> None:
        state = self._state
        now = time.monotonic()
        before = state.leases.all()
        leased = await state.database.run(overview_sql.leased_jobs)
        tokens = {job.lease for job in leased}
        for lease in before:
            if lease.token not in tokens:
                state.stop_lost_lease(lease)
        # A foreign lease may be of this cluster too: its claim was on its way when the registry
        # before was killed.
        foreign = [job for job in leased if job.lease and state.leases.find(job.id, job.lease) is None]
        for job in self._foreign_leases.lapsed(foreign, now):
            RECORDER.count(names.LEASES_LAPSED)
            reason = f"no report to {job.lease_owner} for {state.settings.lease_s:g} s"
            await self._lost_attempts.lose(Lease.from_row(job, now, 0.0), reason)

    # Claims and calls

    def _clear_replica(self, stage: Stage) -> None:
        """If a suspect is next and no replica is empty, give nothing more to the one that has least to do.

        It is let go as soon as another job is next, or another replica is empty.
        """
        before = self._clearing.pop(stage, None)
        head = self._state.waiting.head(stage)
        if head is None or not head.suspect or (room := self.room(stage)).find_empty() is not None:
            return
        left = dict.fromkeys(room.open_slots, 0)
        for lease in self._at_work(stage):
            if lease.replica in left:
                left[lease.replica] += 1 + lease.steps_left
        if before in left:
            self._clearing[stage] = before
        elif left:
            self._clearing[stage] = min(left, key=lambda name: (left[name], name))

    async def _fill_slots(self, stage: Stage) -> None:
        state = self._state
        claims = state.waiting.begin_claim(stage, self.room(stage))
        if not claims:
            return
        tokens = {claim.job.id: uuid.uuid4().hex for claim in claims}
        claimed: dict[str, Job] | None = None
        try:
            jobs = await state.database.run(
                claims_sql.claim,
                stage=stage,
                leases=tokens,
                owner=state.owner,
                now=state.unix_time(),
                lease_s=state.settings.lease_s,
            )
            claimed = {job.id: job for job in jobs}
        except RegistryUnavailableError:
            self._unconfirmed_claims |= tokens
            raise
        finally:
            state.waiting.end_claim(claims, None if claimed is None else set(claimed))
        for job, charge, alone_on in claims:
            if job.id in claimed:
                self._begin_call(claimed[job.id], charge, alone_on)

    async def _undo_unconfirmed_claims(self) -> None:
        """A claim without an answer may have been written; nobody would work under its lease."""
        for job_id, token in list(self._unconfirmed_claims.items()):
            job = await self._state.database.run(
                claims_sql.give_back,
                job_id,
                token,
                now=self._state.unix_time(),
                note="the end of its claim was not told",
            )
            self._state.update_job(job)
            del self._unconfirmed_claims[job_id]

    def _begin_call(self, job: Job, charge: Charge, alone_on: str | None) -> None:
        lease = self._state.leases.grant(job, time.monotonic(), charge, alone_on)
        self._state.feed.publish(job)
        self._calls[lease.token] = lease
        # Not as one of the lease's in the log: what Serve begins at its first call would keep that name for ever.
        task = asyncio.create_task(self._call(lease))
        self._call_tasks.add(task)
        task.add_done_callback(partial(self._call_ended, lease))

    def _call_ended(self, lease: Lease, task: asyncio.Task[None]) -> None:
        self._call_tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            with lease.in_log():
                log.error("A lease could not be ended; it lapses by itself", exc_info=error)

    async def _call(self, lease: Lease) -> None:
        """Send the task. If its lease is there when the call has ended, no end was reported."""

        def accept(replica: str) -> bool:
            if not self._may_go_to(replica, lease):
                return False
            lease.replica = replica
            return True

        job = lease.job
        task = StageTask(
            job.id,
            lease.token,
            lease.stage,
            job.attempt,
            job.spec,
            job.checkpoint_step,
            job.move_span.traceparent,
            job.tenant,
        )
        reason = "the replica ended its call without a result"
        replica_died = False
        try:
            await self._send(task, accept)
        except NoReplicaError as error:
            if lease.alone and lease.replica is not None:  # it has died, perhaps: if not, it says so within seconds
                self._state.replicas.forget(lease.replica)
            await self._give_back(lease, str(error))
            return
        except Exception as error:  # whatever ended the call, the lease tells whether the work was done
            reason = f"the replica was lost ({type(error).__name__})"
            replica_died = isinstance(error, ReplicaDiedError)
            if lease.replica is not None:
                self._state.replicas.forget(lease.replica)
        finally:
            del self._calls[lease.token]
            self._state.wake.set()
        if self._state.leases.holds(lease):
            await self._lost_attempts.lose(lease, reason, replica_died)

    def _may_go_to(self, replica: str, lease: Lease) -> bool:
        """Whether a task may; if the replica that a suspect was given has died, another empty one will do."""
        if not lease.alone:
            return replica not in self._closed(lease.stage)
        return replica == lease.replica or replica in self.room(lease.stage).empty

    async def _give_back(self, lease: Lease, note: str) -> None:
        """The claim never reached a replica."""
        job = await self._state.database.run(
            claims_sql.give_back, lease.job_id, lease.token, now=self._state.unix_time(), note=note
        )
        self._state.end_lease(lease)
        self._state.update_job(job)

    # Room for urgent jobs

    def _preempt(self, stage: Stage) -> None:
        state = self._state
        self._park_for_suspect(stage)
        urgent = state.waiting.count_urgent(stage) if state.scheduling.preemption else 0
        if not self._leases_to_park(stage, urgent):
            return
        if time.monotonic() - self._outranked_at[stage] < self._timing.tick_s:
            return
        at_head = state.waiting.count_urgent_at_head(stage, len(self.room(stage).empty))
        if at_head < urgent:  # some must wait their turn; to find the order of a long queue takes a while
            self._outranked_at[stage] = time.monotonic()
        self._park(self._leases_to_park(stage, at_head))

    def _park_for_suspect(self, stage: Stage) -> None:
        """If an interactive job is to have a replica to itself, what may be parked there makes room at once."""
        scheduling = self._state.scheduling
        replica = self._clearing.get(stage)
        head = self._state.waiting.head(stage)
        if replica is None or head is None or head.tier is not Tier.INTERACTIVE or not scheduling.preemption:
            return
        there = [lease for lease in self._state.leases.of_stage(stage) if lease.replica == replica]
        self._park(leases_to_park(there, len(there), 0, scheduling.max_parks))

    def _leases_to_park(self, stage: Stage, urgent: int) -> list[Lease]:
        """What makes room for urgent jobs, where they may go."""
        if not urgent:
            return []
        clearing = self._clearing.get(stage, "")
        held = [lease for lease in self._state.leases.of_stage(stage) if lease.replica != clearing]
        staying = [lease for lease in self._at_work(stage) if not self._is_ending(lease)]
        open_slots = self._room_beside(stage, staying).count
        return leases_to_park(held, urgent, open_slots, self._state.scheduling.max_parks)

    def _is_ending(self, lease: Lease) -> bool:
        """Whether its call is about to end: its replica said so, or was told to stop.

        A replica that hangs never ends it; when the lease would have lapsed, nothing is expected of it any more.
        """
        return not self._state.leases.holds(lease) and time.monotonic() < lease.deadline

    def _park(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            RECORDER.count(names.PREEMPTIONS)
            with lease.in_log():
                log.info("yields its slot to an interactive job")
            self._state.send_directive(lease, Directive.PARK)
