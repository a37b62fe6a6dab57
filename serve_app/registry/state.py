"""What the parts of the registry share: the database, and what they know of it in memory."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from deployments.messages import STAGES, STEPPED, Directive, Stage
from serve_app.access.tenants import NO_TENANTS, AccessTable
from serve_app.config import JobSettings, SchedulingSettings
from serve_app.database.connection import Database
from serve_app.feed.publisher import FeedPublisher
from serve_app.feed.read_leases import Presence, ReadLeases
from serve_app.jobs import Job, JobState, Usage
from serve_app.registry.leases import Lease, LeaseTable
from serve_app.registry.replicas import Mailbox, ReplicaTable
from serve_app.registry.timing import RegistryTiming
from serve_app.scheduling.activity import Activity, Gpu, Running, count_waiting
from serve_app.scheduling.estimates import CostModel, RemainingCost
from serve_app.scheduling.scaling.capacity import StageState
from serve_app.scheduling.scaling.start_times import StartTimes
from serve_app.scheduling.waiting_jobs import WaitingJobs, WaitingJobsSnapshot

log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """What a registry has in memory at a moment."""

    leases: Mapping[str, str]  # the token, by job id
    waiting: WaitingJobsSnapshot
    access: AccessTable
    presence: Presence


@dataclass
class RegistryState:
    """The database, and what is known in memory; all of that can be lost at any moment."""

    database: Database
    settings: JobSettings
    scheduling: SchedulingSettings
    owner: str  # name of this cluster in the leases, the same after a restart of the actor
    alone: bool = True  # no other registry can be on this database
    restarted: bool = False  # a registry of this owner ran before, and its followers may still have read leases
    timing: RegistryTiming = RegistryTiming()
    unix_time: Callable[[], float] = time.time  # the wall clock, which may jump
    costs: CostModel = field(default_factory=CostModel)
    mailbox: Mailbox = field(default_factory=Mailbox)
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # set when there may be something to hand out
    access: AccessTable = NO_TENANTS  # tenants and keys as last read
    wanted: dict[Stage, StageState] = field(default_factory=dict)  # what Serve keeps, as the policy told last
    on_job_end: Callable[[], None] = lambda: None  # called when a job with a webhook has ended
    on_final: Callable[[Job], None] = lambda _: None  # called with each job that has ended
    replicas: ReplicaTable = field(init=False)
    start_times: StartTimes = field(init=False)
    leases: LeaseTable = field(init=False)
    waiting: WaitingJobs = field(init=False)
    feed: FeedPublisher = field(init=False)

    def __post_init__(self) -> None:
        timing = self.timing
        self.replicas = ReplicaTable(timing.forget_replica_s)
        self.start_times = StartTimes(self.scheduling.replica_start_s)
        self.leases = LeaseTable(self.settings.lease_s, timing.saves_per_lease)
        self.waiting = WaitingJobs(
            self.settings,
            self.weight,
            self.scheduling.promote_after_s,
            self.costs,
            outage_pause_s=timing.outage_pause_s,
            unix_time=self.unix_time,
        )
        read_leases = ReadLeases(
            timing.feed, timing.presence, alone=self.alone, restarted=self.restarted, now=time.monotonic()
        )
        self.feed = FeedPublisher(self.as_of_now, read_leases, timing.feed)

    def snapshot(self) -> StateSnapshot:
        """For tests and for people: what is in memory now."""
        return StateSnapshot(
            leases={lease.job_id: lease.token for lease in self.leases.all()},
            waiting=self.waiting.snapshot(),
            access=self.access,
            presence=self.feed.leases.presence,
        )

    def activity(self, starting: dict[Stage, tuple[float, ...]], gpus: tuple[Gpu, ...]) -> Activity:
        """What waits and what is worked on now. starting: as in Health."""
        now = time.monotonic()
        leases = sorted(self.leases.all(), key=lambda lease: lease.job.created_at)
        return Activity(
            waiting=count_waiting(self.waiting.jobs(), RemainingCost(self.costs).of),
            running=tuple(Running(lease.current_job, lease.replica, self._step_s(lease)) for lease in leases),
            replicas={stage: tuple(self.replicas.alive(stage, now)) for stage in Stage},
            starting=starting,
            gpus=gpus,
        )

    def _step_s(self, lease: Lease) -> float | None:
        if lease.stage not in STEPPED or not self.costs.is_measured(lease.stage):
            return None
        return self.costs.estimate(lease.stage, lease.job.spec, 1)

    def weight(self, tenant: str) -> float:
        """The tenant's share in GPU-seconds: that of its account, or what the settings say."""
        account = self.access.tenants.get(tenant)
        if account is None or account.weight is None:
            return self.scheduling.weight(tenant)
        return account.weight

    def is_live(self, job_id: str) -> bool:
        """Whether the job is known here, and waits or holds a slot."""
        return self.waiting.find(job_id) is not None or self.leases.of_job(job_id) is not None

    def as_of_now(self, job: Job) -> Job:
        """The job with what its replica has reported since its last move."""
        lease = self.leases.of_job(job.id)
        return job if lease is None or lease.token != job.lease else lease.current_job

    def update_job(self, job: Job | None, pause_s: float | None = 0.0) -> None:
        """Take over what a write made of a job: into the queues, the feed and the webhooks.

        Args:
            job: as the write left it; None if the write found its lease gone, and changed nothing.
            pause_s: until it may be claimed again; None for a job that was read and not just
                written.
        """
        if job is None:
            return
        self.waiting.update(job, pause_s)
        self.feed.publish(job)
        self.wake.set()
        if job.final:
            self.on_final(job)
            if job.webhook_url is not None:
                self.on_job_end()

    def end_lease_with(self, lease: Lease, job: Job | None, pause_s: float = 0.0) -> None:
        """The lease is over, and its last write made this of the job; arguments as in `update_job`."""
        self.learn_costs(lease)
        self.end_lease(lease)
        self.update_job(job, pause_s)

    def end_lease(self, lease: Lease) -> None:
        """The lease is over: what its tenant was booked becomes what was used."""
        if not self.leases.holds(lease):
            return
        self.leases.remove(lease)
        if lease.charge is not None:
            self.waiting.settle(lease.stage, lease.charge, lease.reported.device_s)
        self.wake.set()

    def stop_lost_lease(self, lease: Lease) -> None:
        """SQL has another lease or none: another registry has the job. Its worker here must stop."""
        if not self.leases.holds(lease):
            return  # it has ended here while SQL was asked
        with lease.in_log():
            log.warning("its lease is gone from the database; its replica is told to stop")
        self.end_lease(lease)
        self.send_directive(lease, Directive.STOP)

    @asynccontextmanager
    async def unsaved_usage(self, job_id: str) -> AsyncIterator[tuple[str | None, Usage]]:
        """For a write that ends a job: the token of its lease, and the usage to be added to its row."""
        lease = self.leases.of_job(job_id)
        if lease is None:
            yield None, Usage()
            return
        async with lease.saving() as used:
            yield lease.token, used

    def take_over_end(self, job: Job) -> None:
        """Take over a job that a write found or made final; a replica that works on a cancelled one is stopped."""
        self.update_job(job)
        lease = self.leases.of_job(job.id)
        if lease is not None and job.state is JobState.CANCELLED:
            self.end_lease(lease)
            self.send_directive(lease, Directive.STOP)

    def send_directive(self, lease: Lease, directive: Directive) -> None:
        """Reaches the replica at once if it is known, else with the answer to its next report."""
        lease.directive = directive
        if lease.replica is not None:
            self.mailbox.post(lease.replica, lease.token, directive)

    def learn_costs(self, lease: Lease) -> None:
        """Take what the replica used since the last time into the estimates."""
        used = lease.learn()
        self.costs.observe(lease.stage, lease.job.spec, used.steps, used.device_s, used.passes)

    def learn_costs_of_job(self, job: Job) -> None:
        """Take what a completed job cost, if one replica a stage did it from beginning to end."""
        if job.attempt > 1 or job.parks or job.remakes or job.deaths:
            return
        for stage in STAGES[job.kind]:
            if device_s := job.seconds.get(f"{stage}.device"):
                steps = job.spec.steps if stage in STEPPED else 0
                self.costs.observe(stage, job.spec, steps, device_s)
                not_held = {f"{stage}.device", f"{stage}.denoise"}
                parts = [part_s for part, part_s in job.seconds.items() if part.startswith(f"{stage}.")]
                self.costs.observe_held(
                    stage, job.spec, sum(parts) - sum(job.seconds.get(key, 0.0) for key in not_held), steps
                )
