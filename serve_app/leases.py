"""Who works on what, in memory: leases with monotonic deadlines, the slots that replicas announced, and
what they are to be told.

SQL holds the truth about a lease; this is the registry's own view of it, so that a report costs no query and a jump of
the wall clock lapses nothing.
"""

import asyncio
from dataclasses import dataclass, field

from deployments.messages import Directive, ReplicaInfo, Stage


@dataclass(slots=True)
class Lease:
    """One replica's hold on one stage of one job.

    deadline, saved_at: seconds on the monotonic clock. step: denoising steps done. progress: of the whole job, 0 to 1.
    begun, stepped: its replica has said so. counted_step: up to here, steps are in the job's `steps_run`.
    directive: what reports are answered. preview: the newest picture of the half-made video, WebP.
    """

    job_id: str
    token: str
    stage: Stage
    deadline: float
    saved_at: float
    replica: str | None = None
    step: int = 0
    counted_step: int = 0
    progress: float = 0.0
    begun: bool = False
    stepped: bool = False
    directive: Directive = Directive.CONTINUE
    preview: bytes | None = None

    @property
    def uncounted_steps(self) -> int:
        return max(0, self.step - self.counted_step)


@dataclass(slots=True)
class LeaseTable:
    """The leases this registry granted and has not seen end."""

    lease_s: float
    _by_job: dict[str, Lease] = field(default_factory=dict)

    def grant(self, job_id: str, token: str, stage: Stage, now: float, step: int, progress: float) -> Lease:
        lease = Lease(job_id, token, stage, now + self.lease_s, now, step=step, counted_step=step, progress=progress)
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


@dataclass(slots=True)
class Mailbox:
    """Directives on their way to the replicas, which hold a call open for them."""

    _mail: dict[str, dict[str, Directive]] = field(default_factory=dict)
    _bells: dict[str, asyncio.Event] = field(default_factory=dict)

    def post(self, replica: str, lease: str, directive: Directive) -> None:
        self._mail.setdefault(replica, {})[lease] = directive
        if replica in self._bells:
            self._bells[replica].set()

    async def collect(self, replica: str, wait_s: float) -> dict[str, Directive]:
        """What is there for the replica, or comes within wait_s seconds; by lease."""
        bell = self._bells[replica] = asyncio.Event()
        if replica not in self._mail and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await bell.wait()
            except TimeoutError:
                pass
        if self._bells.get(replica) is bell:
            del self._bells[replica]
        return self._mail.pop(replica, {})
