"""Who works on what, in memory: leases, and which of them make room for urgent jobs. Pure.

SQL holds the truth about a lease; this is the registry's own view of it, so that a report costs no
query and a jump of the wall clock lapses nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from deployments.logs.ids import log_ids
from deployments.messages import Directive, Stage
from serve_app.jobs import Job, Usage
from serve_app.scheduling.fair_share import Charge
from serve_app.scheduling.preemption import HeldSlot, slots_to_open, tokens_to_park


@dataclass(slots=True)
class Lease:
    """One replica's hold on one stage of one job.

    What the replica has used is one reading, `reported`. Two marks say how much of it was taken
    over: `saved` into the job's row, `learned` into the estimates. What is between mark and reading
    is taken over next, so nothing is counted twice.
    """

    job: Job  # as it was claimed
    token: str
    stage: Stage
    deadline: float  # seconds on the monotonic clock
    saved_at: float  # seconds on the monotonic clock
    granted_at: float | None = None  # seconds on the monotonic clock; None if a registry before this one granted it
    charge: Charge | None = None  # what its tenant was booked; None if a registry before this one did so
    replica: str | None = None  # None until one was chosen
    reported: Usage = Usage()  # what the replica used, as it said last; `steps` is the step that it is at
    saved: Usage = Usage()  # the part of it that is in the job's row
    learned: Usage = Usage()  # the part of it that is in the estimates
    saved_before: Usage = Usage()  # `saved` as the claim found it
    progress: float = 0.0  # of the whole job, 0 to 1
    alone: bool = False  # it has its replica to itself: a suspect, until it has passed the place
    has_begun: bool = False  # its replica has reported that it began
    has_stepped: bool = False  # its replica has reported a step
    is_resumed: bool = False  # a registry before this one granted it, and its replica has not reported usage since
    directive: Directive = Directive.CONTINUE  # what reports are answered
    checkpoint_step: int = 0  # the newest checkpoint in storage
    preview: bytes | None = None  # the newest picture of the half-made video, WebP
    preview_step: int | None = None
    _saves: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def from_row(cls, job: Job, now: float, lease_s: float, charge: Charge | None = None) -> Self:
        """The lease that the job's row holds."""
        assert job.lease is not None
        in_row = Usage(job.step)
        return cls(
            job=job,
            token=job.lease,
            stage=job.stage,
            deadline=now + lease_s,
            granted_at=now,
            saved_at=now,
            charge=charge,
            # A checkpoint is reported when it is there, progress only now and then: the row may be
            # behind it.
            reported=Usage(max(job.step, job.checkpoint_step)),
            saved=in_row,
            learned=in_row,
            saved_before=in_row,
            progress=job.progress,
            checkpoint_step=job.checkpoint_step,
        )

    @property
    def current_job(self) -> Job:
        """The job with what its replica has reported since the claim.

        It is the row as it was claimed and what was saved since. This holds because every write
        under a lease goes through `saving`, or moves the job on.
        """
        saved = self.saved - self.saved_before
        return replace(
            self.job,
            step=self.step,
            progress=self.progress,
            checkpoint_step=self.checkpoint_step,
            steps_run=self.job.steps_run + saved.steps,
            device_s=self.job.device_s + saved.device_s,
            preview_step=self.preview_step,
        )

    @property
    def job_id(self) -> str:
        return self.job.id

    def in_log(self) -> AbstractContextManager[None]:
        """What is logged within it is of this lease."""
        job = self.job
        return log_ids(job=job.id, tenant=job.tenant, lease=self.token, trace=lambda: job.move_span)

    @property
    def step(self) -> int:
        """The step that its replica is at, of a stage that goes by steps."""
        return self.reported.steps

    @property
    def steps_left(self) -> int:
        return max(0, self.job.spec.steps - self.step)

    @property
    def held_slot(self) -> HeldSlot:
        """The slot that it holds, of a stage that goes by steps."""
        return HeldSlot(
            job_id=self.job_id,
            tier=self.job.tier,
            tokens=tokens_to_park(self.job.spec),
            steps_left=self.steps_left,
            parks=self.job.parks,
            has_begun=self.has_begun,
            is_leaving=self.directive is not Directive.CONTINUE,
        )

    def advance(self, progress: float) -> bool:
        """Note how far it is; whether it has passed the place where a replica died just now: others may join it."""
        self.progress = progress
        has_passed = self.alone and not self.job.suspect_at(progress)
        self.alone = self.alone and not has_passed
        return has_passed

    def begin_at(self, step: int) -> None:
        """Its replica begins at this step: an earlier one if it refused the newest checkpoint."""
        self.has_stepped = True
        self.reported = replace(self.reported, steps=step)
        self.learned = replace(self.learned, steps=step)
        self.saved = replace(self.saved, steps=min(self.saved.steps, step))
        self.saved_before = replace(self.saved_before, steps=min(self.saved_before.steps, step))

    def report(self, step: int, device_s: float, passes: float = 0.0) -> None:
        """Note a report of the replica. It may arrive late, after a newer one.

        Args:
            step: the denoising step that it is at.
            device_s: seconds of its device, since the lease began.
            passes: of the model, since the lease began; its share of those that it shared.
        """
        before = self.reported
        self.reported = Usage(
            max(before.steps, step), max(before.device_s, device_s), passes=max(before.passes, passes)
        )
        if self.is_resumed:
            # How much of it was saved before the restart is not known: the device's time is counted
            # from here.
            self.is_resumed = False
            self.saved = replace(self.saved, device_s=self.reported.device_s)
            self.saved_before = replace(self.saved_before, device_s=self.reported.device_s)
            if self.stage is Stage.SAMPLING:  # that time was for more steps than this registry knows
                self.learned = self.reported

    def keep_checkpoint(self, step: int) -> None:
        """Its state after `step` steps is in storage."""
        self.checkpoint_step = step
        self.reported = replace(self.reported, steps=max(self.step, step))

    @asynccontextmanager
    async def saving(self) -> AsyncIterator[Usage]:
        """Gives what is to be added to the row. If the write fails, the next one gets it.

        One write at a time: the one that ends the lease is the last, and must have what an earlier one could not save.
        """
        async with self._saves:
            used = self.reported - self.saved
            self.saved += used
            try:
                yield used
            except BaseException:
                self.saved -= used
                raise

    def learn(self) -> Usage:
        """What its replica used since the last call, to be added to the estimates."""
        used = self.reported - self.learned
        self.learned = self.reported
        return used


@dataclass(slots=True)
class LeaseTable:
    """The leases that this registry granted and has not seen end."""

    lease_s: float  # a lease lapses when nothing is reported for so long
    saves_per_lease: float  # how often in lease_s a renewal is written to SQL
    _by_job: dict[str, Lease] = field(default_factory=dict)

    def grant(self, job: Job, now: float, charge: Charge | None = None, alone_on: str | None = None) -> Lease:
        """A new lease; on the replica `alone_on`, which it has to itself, if that is not None."""
        lease = Lease.from_row(job, now, self.lease_s, charge)
        lease.replica = alone_on
        lease.alone = alone_on is not None
        self._by_job[job.id] = lease
        return lease

    def resume(self, job: Job, now: float, patience_s: float) -> Lease:
        """A lease from before a restart. It lapses if its worker reports nothing for patience_s."""
        lease = self.grant(job, now)
        lease.has_begun = True
        lease.has_stepped = True
        lease.is_resumed = True
        lease.granted_at = None
        lease.deadline = now + min(patience_s, self.lease_s)
        return lease

    def find(self, job_id: str, token: str) -> Lease | None:
        lease = self._by_job.get(job_id)
        return lease if lease is not None and lease.token == token else None

    def of_job(self, job_id: str) -> Lease | None:
        return self._by_job.get(job_id)

    def renew(self, lease: Lease, now: float) -> None:
        lease.deadline = now + self.lease_s

    def extend_all(self, seconds: float) -> None:
        """For a time in which no report could arrive."""
        for lease in self._by_job.values():
            lease.deadline += seconds

    def needs_saving(self, lease: Lease, now: float) -> bool:
        """Whether to write a renewal to SQL: a few times per lease, not at every report."""
        return now - lease.saved_at >= self.lease_s / self.saves_per_lease

    def holds(self, lease: Lease) -> bool:
        """Whether the lease has not ended."""
        return self._by_job.get(lease.job_id) is lease

    def remove(self, lease: Lease) -> None:
        if self.holds(lease):
            del self._by_job[lease.job_id]

    def lapsed(self, now: float) -> list[Lease]:
        return [lease for lease in self._by_job.values() if lease.deadline <= now]

    def of_stage(self, stage: Stage) -> list[Lease]:
        return [lease for lease in self._by_job.values() if lease.stage is stage]

    def all(self) -> list[Lease]:
        return list(self._by_job.values())


@dataclass(slots=True)
class ForeignLeases:
    """Leases of other registries on the database: one that is not renewed for lease_s has lapsed.

    The time is this machine's monotonic clock, from when a renewal was first seen: the wall clocks
    of two machines are not compared, and one that jumps lapses nothing.
    """

    lease_s: float
    _renewals: dict[str, tuple[float | None, float]] = field(default_factory=dict)  # token: (expiry in SQL, seen at)

    def lapsed(self, leased: Iterable[Job], now: float) -> list[Job]:
        """Those of the `leased` jobs, read just now, whose lease was not renewed for lease_s."""
        before = self._renewals
        self._renewals = {}
        lapsed = []
        for job in leased:
            assert job.lease is not None
            renewal, since = before.get(job.lease, (None, now))
            if renewal != job.lease_expires_at:
                since = now
            self._renewals[job.lease] = (job.lease_expires_at, since)
            if now - since >= self.lease_s:
                lapsed.append(job)
        return lapsed


def leases_to_park(held: Iterable[Lease], urgent: int, open_slots: int, max_parks: int) -> list[Lease]:
    """The leases to yield so that `urgent` waiting interactive jobs find a slot, as `slots_to_open` chooses them.

    Args:
        held: all leases of a stage that goes by steps.
        max_parks: a job that was parked this often goes on.
    """
    leases = {lease.job_id: lease for lease in held}
    slots = slots_to_open((lease.held_slot for lease in leases.values()), urgent, open_slots, max_parks)
    return [leases[slot.job_id] for slot in slots]
