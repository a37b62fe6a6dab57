"""Who works on what, in memory: leases with monotonic deadlines, and the slots that replicas announced. Pure.

SQL holds the truth about a lease; this is the registry's own view of it, so that a report costs no query and a jump of
the wall clock lapses nothing.
"""

from dataclasses import dataclass, field

from deployments.messages import ReplicaInfo, Stage


@dataclass(slots=True)
class Lease:
    """One replica's hold on one stage of one job.

    deadline, saved_at: seconds on the monotonic clock. step: denoising steps done. progress: of the whole job, 0 to 1.
    """

    job_id: str
    token: str
    stage: Stage
    deadline: float
    saved_at: float
    replica: str | None = None
    step: int = 0
    progress: float = 0.0


@dataclass(slots=True)
class LeaseTable:
    """The leases this registry granted and has not seen end."""

    lease_s: float
    _by_job: dict[str, Lease] = field(default_factory=dict)

    def grant(self, job_id: str, token: str, stage: Stage, now: float, step: int, progress: float) -> Lease:
        lease = Lease(job_id, token, stage, now + self.lease_s, now, step=step, progress=progress)
        self._by_job[job_id] = lease
        return lease

    def held(self, job_id: str, token: str) -> Lease | None:
        lease = self._by_job.get(job_id)
        return lease if lease is not None and lease.token == token else None

    def of_job(self, job_id: str) -> Lease | None:
        return self._by_job.get(job_id)

    def renew(self, lease: Lease, now: float) -> None:
        lease.deadline = now + self.lease_s

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


@dataclass(slots=True)
class ReplicaTable:
    """The replicas that announced themselves within the last `forget_s` seconds."""

    forget_s: float
    _seen: dict[str, tuple[ReplicaInfo, float]] = field(default_factory=dict)

    def announce(self, info: ReplicaInfo, now: float) -> bool:
        """True if this replica was not known: there is a new slot."""
        new = info.replica not in self._seen
        self._seen[info.replica] = (info, now)
        return new

    def forget(self, replica: str) -> None:
        self._seen.pop(replica, None)

    def alive(self, stage: Stage, now: float) -> list[ReplicaInfo]:
        return [i for i, at in self._seen.values() if i.stage is stage and now - at < self.forget_s]

    def slots(self, stage: Stage, now: float) -> int:
        return sum(info.slots for info in self.alive(stage, now))

    def prune(self, now: float) -> None:
        self._seen = {k: v for k, v in self._seen.items() if now - v[1] < self.forget_s}
