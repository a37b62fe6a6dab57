"""What the parts of the registry share: the database, and what they know of it in memory."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from deployments.messages import Directive, Stage
from serve_app.access.tenants import NO_TENANTS, AccessTable
from serve_app.config import JobSettings, SchedulingSettings
from serve_app.database.connection import Database
from serve_app.feed.publisher import FeedPublisher
from serve_app.jobs import Job
from serve_app.registry.leases import Lease, LeaseTable
from serve_app.registry.replicas import Mailbox, ReplicaTable
from serve_app.scheduling.estimates import CostModel
from serve_app.scheduling.waiting_jobs import WaitingJobs

log = logging.getLogger("ray.serve")

FORGET_REPLICA_S = 10.0


@dataclass
class RegistryState:
    """The database, and what is known in memory; all of that can be lost at any moment."""

    database: Database
    settings: JobSettings
    scheduling: SchedulingSettings
    owner: str  # name of this cluster in the leases, the same after a restart of the actor
    costs: CostModel = field(default_factory=CostModel)
    replicas: ReplicaTable = field(default_factory=lambda: ReplicaTable(FORGET_REPLICA_S))
    mailbox: Mailbox = field(default_factory=Mailbox)
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # set when there may be something to hand out
    access: AccessTable = NO_TENANTS  # tenants and keys as last read
    on_end: Callable[[], None] = lambda: None  # called when a job has ended that somebody wants to be told of
    leases: LeaseTable = field(init=False)
    waiting: WaitingJobs = field(init=False)
    feed: FeedPublisher = field(init=False)

    def __post_init__(self) -> None:
        self.leases = LeaseTable(self.settings.lease_s)
        self.waiting = WaitingJobs(self.settings, self.weight, self.scheduling.promote_after_s, self.costs)
        self.feed = FeedPublisher(self.as_of_now)

    def weight(self, tenant: str) -> float:
        """Its share in GPU-seconds: that of its account, or what the settings say."""
        account = self.access.tenants.get(tenant)
        known = None if account is None else account.weight
        return self.scheduling.weight(tenant) if known is None else known

    def as_of_now(self, job: Job) -> Job:
        """The job with what its replica has told since its last move."""
        lease = self.leases.of_job(job.id)
        return job if lease is None or lease.token != job.lease else lease.job_now

    def follow(self, job: Job | None, pause_s: float | None = 0.0) -> None:
        """Take note of what a write made of a job; None if the write found its lease gone.

        Args:
            pause_s: until it may be claimed again; None for a job that was read and not just written.
        """
        if job is not None:
            self.waiting.follow(job, pause_s)
            self.feed.publish(job)
            self.wake.set()
            if job.final and job.webhook_url is not None:
                self.on_end()

    def follow_end(self, lease: Lease, job: Job | None, pause_s: float = 0.0) -> None:
        """Take note of what the end of a lease made of its job; see `follow`."""
        self.learn(lease)
        self.end_lease(lease)
        self.follow(job, pause_s)

    def end_lease(self, lease: Lease) -> None:
        """The lease is over: what its tenant was booked becomes what was used."""
        if self.leases.held(lease.job_id, lease.token) is not lease:
            return
        self.leases.drop(lease)
        if lease.charge is not None:
            self.waiting.settle(lease.stage, lease.charge, lease.reported.device_s)
        self.wake.set()

    def tell(self, lease: Lease, directive: Directive) -> None:
        """Reaches the replica at once if it is known, else with the answer to its next report."""
        lease.directive = directive
        if lease.replica is not None:
            self.mailbox.post(lease.replica, lease.token, directive)

    def learn(self, lease: Lease) -> None:
        """Take what its replica used since the last time into the estimates; encoding and decoding only as a whole."""
        used = lease.learn()
        self.costs.observe(lease.stage, lease.job.spec, used.steps, used.device_s)

    def learn_from(self, job: Job) -> None:
        """Take what a completed job cost, if one replica a stage did it from beginning to end."""
        if job.attempt > 1 or job.parks:
            return
        for stage in Stage:
            if device_s := job.seconds.get(f"{stage}.device"):
                steps = job.spec.num_inference_steps if stage is Stage.SAMPLING else 0
                self.costs.observe(stage, job.spec, steps, device_s)
