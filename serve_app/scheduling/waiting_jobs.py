"""The waiting jobs, mirrored from SQL: a fair queue for each stage, and the bounds on how many may wait.

The mirror follows what this registry does and is compared with SQL every few seconds, because another registry may
work on the same database. A claim is decided by SQL: a job that waits here and not there is simply not claimed.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from deployments.messages import Stage
from serve_app.config import JobSettings
from serve_app.errors import QueueFullError
from serve_app.jobs import Job, JobState, Tier, retry_pause
from serve_app.scheduling.estimates import CostModel
from serve_app.scheduling.fair_queue import FairQueue
from serve_app.scheduling.fair_share import Charge, Waiting
from serve_app.scheduling.retries import OUTAGE_PAUSE_S


class WaitingJobs:
    """All jobs in the state `queued`, each in the queue of its stage."""

    def __init__(
        self, jobs: JobSettings, weight: Callable[[str], float], promote_after_s: float, costs: CostModel
    ) -> None:
        self._settings = jobs
        self._costs = costs
        self._queues = {stage: FairQueue(weight, promote_after_s) for stage in Stage}
        self._jobs: dict[str, Job] = {}
        self._coming: Counter[str] = Counter()
        self._being_claimed: set[str] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def holds(self, job_id: str) -> bool:
        """Whether it waits, as far as is known here, or is being claimed at this moment."""
        return job_id in self._jobs or job_id in self._being_claimed

    def follow(self, job: Job, pause_s: float | None = None) -> None:
        """Take note of what became of a job; call it right after the write, in the order of the writes.

        Args:
            pause_s: until it may be claimed again; None for a job that was read and not just written.
        """
        self.drop(job.id)
        if job.state is JobState.QUEUED:
            self._jobs[job.id] = job
            self._queues[job.stage].put(self._waiting(job, self._pause_left_s(job) if pause_s is None else pause_s))

    def drop(self, job_id: str) -> None:
        """It does not wait any more."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._queues[job.stage].remove(job_id)

    def take(self, stage: Stage, count: int, suspects: int) -> list[tuple[Job, Charge]]:
        """The next jobs for `count` slots, at most `suspects` of them suspects. End with `claimed`."""
        taken: list[tuple[Job, Charge]] = []
        while len(taken) < count and (found := self._queues[stage].take(time.monotonic(), suspects)):
            waiting, charge = found
            suspects -= waiting.suspect
            job = self._jobs[waiting.job_id]
            self.drop(job.id)
            self._being_claimed.add(job.id)
            taken.append((job, charge))
        return taken

    def claimed(self, taken: Iterable[tuple[Job, Charge]], claimed: set[str] | None) -> None:
        """How the claim ended: the ids that SQL gave; None if SQL did not answer and all still wait."""
        for job, charge in taken:
            self._being_claimed.discard(job.id)
            if claimed is None:
                self.follow(job, 0.0)  # before the charge is undone: its tenant keeps its turn
            if claimed is None or job.id not in claimed:
                self.settle(job.stage, charge, 0.0)

    def settle(self, stage: Stage, charge: Charge, used_s: float) -> None:
        """Correct what a tenant was booked by what was used."""
        self._queues[stage].settle(charge, used_s)

    def reconcile(self, queued: Iterable[tuple[str, Stage]]) -> list[str]:
        """Compare with what SQL says waits: drops what does not, returns the ids that are not known here."""
        told = dict(queued)
        for job in list(self._jobs.values()):
            if told.get(job.id) is not job.stage:
                self.drop(job.id)
        return [job_id for job_id in told if job_id not in self._jobs and job_id not in self._being_claimed]

    def refusal(self, tenant: str, max_queued: int | None, retry_after_s: Callable[[], int]) -> QueueFullError | None:
        """Why one more job of the tenant may not wait, or None. max_queued: its own bound, if it has one."""
        jobs, coming = self._settings, self._coming
        allowed = jobs.max_queued_per_tenant if max_queued is None else max_queued
        if len(self._jobs) + coming.total() >= jobs.max_queued:
            return QueueFullError(jobs.max_queued, None, retry_after_s())
        of_tenant = sum(queue.count(tenant) for queue in self._queues.values())
        if of_tenant + coming[tenant] >= allowed:
            return QueueFullError(allowed, tenant, retry_after_s())
        return None

    @contextmanager
    def coming(self, tenant: str) -> Iterator[None]:
        """Counts a job that is being written, so that many at once do not pass the bounds together."""
        self._coming[tenant] += 1
        try:
            yield
        finally:
            self._coming[tenant] -= 1
            if not self._coming[tenant]:  # clients make up the names of tenants: none may stay
                del self._coming[tenant]

    def urgent(self, stage: Stage) -> int:
        """Interactive jobs that could run now."""
        return self._queues[stage].waiting_tiers(time.monotonic())[Tier.INTERACTIVE]

    def urgent_first(self, stage: Stage, suspects: int) -> int:
        """Those of them that go to the next slots before any other job, if `suspects` more suspects may run."""
        first = 0
        for waiting in self._queues[stage].order(time.monotonic()):
            if waiting.suspect and suspects <= 0:
                continue
            if waiting.tier is not Tier.INTERACTIVE:
                break
            first, suspects = first + 1, suspects - waiting.suspect
        return min(first, self.urgent(stage))

    def order(self, stage: Stage) -> list[Job]:
        """The jobs of a stage in the order in which they would go to slots if no other came."""
        return [self._jobs[waiting.job_id] for waiting in self._queues[stage].order(time.monotonic())]

    def next_in_s(self) -> float | None:
        """Seconds until the pause of some job is over; None if none pauses."""
        now = time.monotonic()
        times = [at for queue in self._queues.values() if (at := queue.next_at(now)) is not None]
        return max(0.0, min(times) - now) if times else None

    def count(self) -> Counter[Stage]:
        return Counter({stage: len(queue) for stage, queue in self._queues.items()})

    def _pause_left_s(self, job: Job) -> float:
        """By the wall clock, which may have jumped: never longer than the pause can have been."""
        settings = self._settings
        longest = retry_pause(job.attempt, settings.retry_pause_s, settings.max_retry_pause_s)
        return min(max(0.0, job.available_at - time.time()), max(longest, OUTAGE_PAUSE_S))

    def _waiting(self, job: Job, pause_s: float) -> Waiting:
        """The claim of a job that was parked begins anew: else an old one takes the slot that it made room with."""
        now, waits_from = time.monotonic(), job.available_at if job.parks else job.created_at
        return Waiting(
            job_id=job.id,
            tenant=job.tenant,
            tier=job.tier,
            order=(job.created_at, job.id),
            since=now - max(0.0, time.time() - waits_from),
            not_before=now + pause_s,
            cost_s=self._costs.estimate(job.stage, job.spec, job.spec.num_inference_steps - job.step),
            suspect=job.suspect,
        )
