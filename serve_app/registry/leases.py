"""Who works on what, in memory: leases with monotonic deadlines, the slots that replicas announced, and
what they are to be told.

SQL holds the truth about a lease; this is the registry's own view of it, so that a report costs no query and a jump of
the wall clock lapses nothing.

Which running jobs make room for interactive ones. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from deployments.messages import Directive, Stage
from serve_app.jobs import TIERS, Job, Tier, Usage
from serve_app.scheduling.fair_share import Charge


@dataclass(slots=True)
class Lease:
    """One replica's hold on one stage of one job.

    job: as it was claimed. spent: what was counted into its row since. deadline, saved_at: seconds on the monotonic
    clock. charge: what its tenant was booked, None if a registry before this one did so. step: denoising steps done.
    device_s: seconds of the device that the replica told. learned_step, learned_device_s: up to here they are in the
    estimates; counted_step, counted_device_s: in the job's row. progress: of the whole job, 0 to 1. begun, stepped: its
    replica has said so. directive: what reports are answered. checkpoint_step: the newest that is in storage. preview:
    the newest picture of the half-made video, WebP, after preview_step steps.
    """

    job: Job
    token: str
    stage: Stage
    deadline: float
    saved_at: float
    charge: Charge | None = None
    replica: str | None = None
    step: int = 0
    counted_step: int = 0
    device_s: float = 0.0
    learned_step: int = 0
    learned_device_s: float = 0.0
    counted_device_s: float | None = 0.0
    progress: float = 0.0
    begun: bool = False
    stepped: bool = False
    directive: Directive = Directive.CONTINUE
    checkpoint_step: int = 0
    preview: bytes | None = None
    preview_step: int | None = None
    spent: Usage = field(default_factory=Usage)

    @classmethod
    def of(cls, job: Job, now: float, lease_s: float, charge: Charge | None = None) -> Self:
        """The lease that the job's row tells of."""
        assert job.lease is not None
        lease = cls(job, job.lease, job.stage, now + lease_s, now, charge, progress=job.progress)
        lease.learned_step = lease.counted_step = job.step
        # A checkpoint is told when it is there, progress is saved later.
        lease.step = max(job.step, job.checkpoint_step)
        lease.checkpoint_step = job.checkpoint_step
        return lease

    @property
    def job_now(self) -> Job:
        """The job with what its replica has told since the claim."""
        return replace(
            self.job,
            step=self.step,
            progress=self.progress,
            checkpoint_step=self.checkpoint_step,
            steps_run=self.job.steps_run + self.spent.steps,
            device_s=self.job.device_s + self.spent.device_s,
            preview_step=self.preview_step,
        )

    @property
    def job_id(self) -> str:
        return self.job.id

    @property
    def suspect(self) -> bool:
        """A replica died with this job, and it has not passed that place since."""
        return self.job.suspect_at(self.progress)

    @property
    def steps_left(self) -> int:
        return max(0, self.job.spec.num_inference_steps - self.step)

    def used(self, device_s: float) -> None:
        """Note what the replica told. After a restart of the registry it is not known what was counted before."""
        self.device_s = max(self.device_s, device_s)
        if self.counted_device_s is None:
            self.counted_device_s = self.device_s
            if self.stage is Stage.SAMPLING:  # what its steps until now took was for more steps than are known
                self.learned_step, self.learned_device_s = self.step, self.device_s

    def count(self) -> Usage:
        """What was spent since the last call; the caller adds it to the job's row."""
        device_s = self.device_s - (self.device_s if self.counted_device_s is None else self.counted_device_s)
        spent = Usage(max(0, self.step - self.counted_step), max(0.0, device_s))
        self.counted_step, self.counted_device_s = self.step, self.device_s
        self.spent = Usage(self.spent.steps + spent.steps, self.spent.device_s + spent.device_s)
        return spent

    def learn(self) -> Usage:
        """What its replica spent since the last call, for the estimates."""
        spent = Usage(self.step - self.learned_step, self.device_s - self.learned_device_s)
        self.learned_step, self.learned_device_s = self.step, self.device_s
        return spent

    def uncount(self, spent: Usage) -> None:
        """The row could not be written: count it the next time."""
        self.counted_step -= spent.steps
        self.spent = Usage(self.spent.steps - spent.steps, self.spent.device_s - spent.device_s)
        if self.counted_device_s is not None:
            self.counted_device_s -= spent.device_s


@dataclass(slots=True)
class LeaseTable:
    """The leases this registry granted and has not seen end."""

    lease_s: float
    _by_job: dict[str, Lease] = field(default_factory=dict)

    def grant(self, job: Job, now: float, charge: Charge | None = None) -> Lease:
        lease = Lease.of(job, now, self.lease_s, charge)
        self._by_job[job.id] = lease
        return lease

    def resume(self, job: Job, now: float, patience_s: float) -> Lease:
        """A lease that a registry before this one granted; its worker says so within patience_s, or it lapses."""
        lease = self.grant(job, now)
        lease.begun = lease.stepped = True
        lease.counted_device_s = None
        lease.deadline = now + min(patience_s, self.lease_s)
        return lease

    def held(self, job_id: str, token: str) -> Lease | None:
        lease = self._by_job.get(job_id)
        return lease if lease is not None and lease.token == token else None

    def of_job(self, job_id: str) -> Lease | None:
        return self._by_job.get(job_id)

    def renew(self, lease: Lease, now: float) -> None:
        lease.deadline = now + self.lease_s

    def extend(self, seconds: float) -> None:
        """For a time in which no report could be heard."""
        for lease in self._by_job.values():
            lease.deadline += seconds

    def needs_saving(self, lease: Lease, now: float) -> bool:
        """SQL is told of a renewal a few times per lease, not at every report."""
        return now - lease.saved_at >= self.lease_s / 4

    def drop(self, lease: Lease) -> None:
        if self._by_job.get(lease.job_id) is lease:
            del self._by_job[lease.job_id]

    def lapsed(self, now: float) -> list[Lease]:
        return [lease for lease in self._by_job.values() if lease.deadline <= now]

    def of_stage(self, stage: Stage) -> list[Lease]:
        return [lease for lease in self._by_job.values() if lease.stage is stage]

    def all(self) -> list[Lease]:
        return list(self._by_job.values())


@dataclass(slots=True)
class ForeignLeases:
    """Leases of other registries on the same database: one that is not renewed for lease_s has lapsed.

    The time is this machine's own monotonic clock, from when a renewal was first seen: no wall clocks of two machines
    are compared, and none that jumps lapses anything.
    """

    lease_s: float
    _seen: dict[str, tuple[float | None, float]] = field(default_factory=dict)

    def lapsed(self, leased: Iterable[Job], now: float) -> list[Job]:
        """Those of `leased` jobs, read just now, that have not been renewed for lease_s."""
        before, self._seen = self._seen, {}
        lapsed = []
        for job in leased:
            assert job.lease is not None
            renewal, since = before.get(job.lease, (None, now))
            if renewal != job.lease_expires_at:
                since = now
            self._seen[job.lease] = (job.lease_expires_at, since)
            if now - since >= self.lease_s:
                lapsed.append(job)
        return lapsed


def leases_to_park(sampling: Iterable[Lease], urgent: int, open_slots: int, max_parks: int) -> list[Lease]:
    """The leases to yield so that `urgent` waiting interactive jobs find a slot at the next step.

    Slots that open by themselves within a step count too: those of jobs that yield already or are at their last step.
    Of the others the cheapest to park go first: the lowest tier, then the smallest state, then the one with most steps
    left, because it would hold its slot longest.

    Args:
        sampling: all leases of the sampling stage.
        max_parks: a job that was parked this often goes on.
    """
    sampling = list(sampling)
    opening = open_slots + sum(1 for lease in sampling if _opens_soon(lease))
    candidates = [lease for lease in sampling if not _opens_soon(lease) and _may_be_parked(lease, max_parks)]
    candidates.sort(key=lambda lease: (-TIERS.index(lease.job.tier), lease.job.spec.clip.tokens, -lease.steps_left))
    return candidates[: max(0, urgent - opening)]


def _opens_soon(lease: Lease) -> bool:
    return lease.directive is not Directive.CONTINUE or lease.steps_left <= 1


def _may_be_parked(lease: Lease, max_parks: int) -> bool:
    return lease.begun and lease.job.tier is not Tier.INTERACTIVE and lease.job.parks < max_parks
