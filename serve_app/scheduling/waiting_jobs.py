"""The waiting jobs, mirrored from SQL: a fair queue for each stage, and bounds on their number.

The mirror is updated by what this registry writes, and compared with SQL every few seconds, because
another registry may work on the same database. A claim is decided by SQL: a job that waits here and
not there is simply not claimed.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from deployments.messages import Stage
from serve_app.config import JobSettings
from serve_app.errors import QueueFullError
from serve_app.jobs import Job, JobState, Tier, retry_pause
from serve_app.scheduling.estimates import CostModel
from serve_app.scheduling.fair_queue import FairQueue, FairQueueSnapshot
from serve_app.scheduling.fair_share import Charge, QueueEntry
from serve_app.scheduling.retries import OUTAGE_PAUSE_S, remake_pause
from serve_app.scheduling.room import Room


@dataclass(frozen=True, slots=True)
class WaitingJobsSnapshot:
    """What waits at a moment."""

    job_ids: frozenset[str]
    queues: Mapping[Stage, FairQueueSnapshot]
    reserved: Mapping[str, int]  # jobs that are being written, by tenant
    in_claim: frozenset[str]  # jobs whose claim SQL has not answered yet


class Claim(NamedTuple):
    """A job that was taken out of its queue for a slot."""

    job: Job
    charge: Charge
    alone_on: str | None  # the replica that it has to itself; None: whichever has room


class WaitingJobs:
    """All jobs in the state `queued`, each in the queue of its stage.

    Args:
        settings: how many jobs may wait, and the pauses between attempts.
        weight: a tenant's share of the GPU-seconds, > 0.
        promote_after_s: a job that has waited this long goes with the tier above.
        costs: what a job is estimated to cost.
        outage_pause_s: the longest pause after an outage.
        unix_time: the wall clock.
    """

    def __init__(
        self,
        settings: JobSettings,
        weight: Callable[[str], float],
        promote_after_s: float,
        costs: CostModel,
        outage_pause_s: float = OUTAGE_PAUSE_S,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._costs = costs
        self._outage_pause_s = outage_pause_s
        self._unix_time = unix_time
        self._queues = {stage: FairQueue(weight, promote_after_s) for stage in Stage}
        self._jobs: dict[str, Job] = {}
        self._reserved: Counter[str] = Counter()  # by tenant
        self._in_claim: set[str] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: object) -> bool:
        """Whether it waits, as far as this registry knows, or is being claimed at this moment."""
        return job_id in self._jobs or job_id in self._in_claim

    def snapshot(self) -> WaitingJobsSnapshot:
        """For tests and for people: what waits now."""
        return WaitingJobsSnapshot(
            job_ids=frozenset(self._jobs),
            queues={stage: queue.snapshot() for stage, queue in self._queues.items()},
            reserved=dict(self._reserved),
            in_claim=frozenset(self._in_claim),
        )

    def update(self, job: Job, pause_s: float | None = None) -> None:
        """Take over a job as a write left it (called in the order of the writes), or as it was read.

        Args:
            pause_s: until it may be claimed again; None for a job that was read and not just
                written.
        """
        self.remove(job.id)
        if job.state is JobState.QUEUED:
            self._jobs[job.id] = job
            self._queues[job.stage].put(self.entry(job, self._pause_left_s(job) if pause_s is None else pause_s))

    def remove(self, job_id: str) -> None:
        """The job does not wait any more."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._queues[job.stage].remove(job_id)

    def begin_claim(self, stage: Stage, room: Room) -> list[Claim]:
        """Take out the next jobs that there is room for; `end_claim` must follow.

        A suspect gets an empty replica; while there is none it is passed over.
        """
        claims: list[Claim] = []
        while room.count > 0:
            empty = room.find_empty()
            found = self._queues[stage].take(time.monotonic(), suspects=int(empty is not None))
            if found is None:
                break
            entry, charge = found
            if alone_on := empty if entry.suspect else None:
                room.take_replica(alone_on)
            else:
                room.take_slot()
            job = self._jobs[entry.job_id]
            self.remove(job.id)
            self._in_claim.add(job.id)
            claims.append(Claim(job, charge, alone_on))
        return claims

    def end_claim(self, claims: Iterable[Claim], claimed_ids: set[str] | None) -> None:
        """Take over how a claim ended.

        Args:
            claims: what `begin_claim` gave.
            claimed_ids: those of them that SQL gave; None if SQL did not answer: then all of them
                still wait.
        """
        for job, charge, _ in claims:
            self._in_claim.discard(job.id)
            if claimed_ids is None:
                self.update(job, 0.0)  # before the charge is undone: so its tenant keeps its turn
            if claimed_ids is None or job.id not in claimed_ids:
                self.settle(job.stage, charge, 0.0)

    def settle(self, stage: Stage, charge: Charge, used_s: float) -> None:
        """Correct what a tenant was booked by the GPU-seconds that were used."""
        self._queues[stage].settle(charge, used_s)

    def reconcile(self, queued: Iterable[tuple[str, Stage]]) -> list[str]:
        """Compare with what waits in SQL: forget all else, and return the ids that are missing here."""
        in_sql = dict(queued)
        for job in list(self._jobs.values()):
            if in_sql.get(job.id) is not job.stage:
                self.remove(job.id)
        return [job_id for job_id in in_sql if job_id not in self]

    def full_error(
        self, tenant: str, max_queued: int | None, retry_after_s: Callable[[str | None], int]
    ) -> QueueFullError | None:
        """Why one more job of the tenant may not wait, or None.

        Args:
            max_queued: how many jobs of the tenant may wait; None if it has no bound of its own.
            retry_after_s: when there is likely room for anybody (None), or for a tenant; asked only
                if there is none now.
        """
        settings = self._settings
        if len(self._jobs) + self._reserved.total() >= settings.max_queued:
            return QueueFullError(settings.max_queued, None, retry_after_s(None))
        allowed = settings.max_queued_per_tenant if max_queued is None else max_queued
        of_tenant = sum(queue.count(tenant) for queue in self._queues.values())
        if of_tenant + self._reserved[tenant] >= allowed:
            return QueueFullError(allowed, tenant, retry_after_s(tenant))
        return None

    @contextmanager
    def reserving(self, tenant: str) -> Iterator[None]:
        """Count a job while it is written, so that many at once do not pass the bounds together."""
        self._reserved[tenant] += 1
        try:
            yield
        finally:
            self._reserved[tenant] -= 1
            if not self._reserved[tenant]:  # clients make up the names of tenants: none may stay
                del self._reserved[tenant]

    def count_urgent(self, stage: Stage) -> int:
        """Interactive jobs that could run now."""
        return self._queues[stage].count_available(time.monotonic())[Tier.INTERACTIVE]

    def count_urgent_at_head(self, stage: Stage, suspects: int) -> int:
        """Those of them that go before any other job, if `suspects` more suspects may run."""
        at_head = 0
        for entry in self._queues[stage].order(time.monotonic()):
            if entry.suspect and suspects <= 0:
                continue
            if entry.tier is not Tier.INTERACTIVE:
                break
            at_head += 1
            suspects -= entry.suspect
        return min(at_head, self.count_urgent(stage))

    def head(self, stage: Stage) -> QueueEntry | None:
        """The job that is next in the stage, whether there is room for it or not."""
        return self._queues[stage].head(time.monotonic())

    @property
    def queues(self) -> Mapping[Stage, FairQueue]:
        """The queue of each stage, to be read and copied."""
        return MappingProxyType(self._queues)

    def find(self, job_id: str) -> Job | None:
        """The job if it waits."""
        return self._jobs.get(job_id)

    def jobs(self) -> list[Job]:
        """All that wait, in no order."""
        return list(self._jobs.values())

    def order(self, stage: Stage) -> list[Job]:
        """The jobs of a stage in the order in which they would go to slots if no other came."""
        return [self._jobs[entry.job_id] for entry in self._queues[stage].order(time.monotonic())]

    def next_pause_ends_in_s(self) -> float | None:
        """Seconds until the pause of some job is over; None if none pauses."""
        now = time.monotonic()
        ends = [at for queue in self._queues.values() if (at := queue.next_pause_end(now)) is not None]
        return max(0.0, min(ends) - now) if ends else None

    def _pause_left_s(self, job: Job) -> float:
        """By the wall clock, which may have jumped: never longer than the pause can have been."""
        settings = self._settings
        longest = retry_pause(max(job.attempt, job.deaths + 1), settings.retry_pause_s, settings.max_retry_pause_s)
        if job.remakes:
            longest = max(longest, remake_pause(job.remakes, settings))
        return min(max(0.0, job.available_at - self._unix_time()), max(longest, self._outage_pause_s))

    def entry(self, job: Job, pause_s: float) -> QueueEntry:
        """The job as its queue has it.

        Args:
            pause_s: until it may be claimed.
        """
        # The credit of a job that was parked begins anew: else an old one took the slot that it
        # made room with.
        waits_from = job.available_at if job.parks else job.created_at
        now = time.monotonic()
        return QueueEntry(
            job_id=job.id,
            tenant=job.tenant,
            tier=job.tier,
            order=(job.created_at, job.id),
            since=now - max(0.0, self._unix_time() - waits_from),
            not_before=now + pause_s,
            cost_s=self._costs.estimate(job.stage, job.spec, job.spec.steps - job.step),
            suspect=job.suspect,
        )
