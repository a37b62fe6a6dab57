"""Whether one more job may be accepted: a sampler, the queue and its tenant have room for it."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deployments.messages import STAGES, JobKind, Stage, VideoSpec
from serve_app.access.limits import NOTHING_BOOKED, DayBooking, Quotas
from serve_app.access.tenants import Tenant, day_of
from serve_app.database import access as access_sql
from serve_app.errors import QueueFullError, RateLimitError, TooLargeError
from serve_app.jobs import STAGES_FROM, Job, Submission
from serve_app.registry.planning.queue_estimates import QueueEstimates
from serve_app.registry.state import RegistryState
from serve_app.scheduling.fitting import memory_limit

Refusal = TooLargeError | QueueFullError | RateLimitError


@dataclass(frozen=True, slots=True, eq=False)
class _BeingWritten:
    """A job that was accepted and is not in SQL yet."""

    submission: Submission
    cost_s: float  # in GPU-seconds, as it was estimated then


class AdmissionControl:
    """Decides on each new job."""

    def __init__(self, state: RegistryState, estimates: QueueEstimates) -> None:
        self._state = state
        self._estimates = estimates
        self._quotas = Quotas(time.monotonic)
        self._being_written: list[_BeingWritten] = []  # in the order in which they were accepted

    @property
    def reserved_s(self) -> Mapping[str, float]:
        """Estimated GPU-seconds of the jobs that are being written, by tenant."""
        found: defaultdict[str, float] = defaultdict(float)
        for one in self._being_written:
            found[one.submission.tenant] += one.cost_s
        return found

    async def decide(self, new: Submission) -> Submission | Refusal:
        """What is to be accepted, which may be the job's draft, or why nothing is.

        What is to be accepted is counted, and must be `reserving` before anything is awaited.

        Raises:
            RegistryUnavailableError: what the tenant has used cannot be read now.
        """
        state = self._state
        if isinstance(new.spec, VideoSpec):
            tokens = new.spec.clip.tokens
            limit = memory_limit(state.replicas.alive(Stage.SAMPLING, time.monotonic()))
            if limit is not None and tokens > limit:
                return TooLargeError(tokens, limit)
        tenant = state.access.tenants.get(new.tenant)
        now = state.unix_time()
        used_s = 0.0
        if tenant is not None and tenant.gpu_seconds_per_day is not None:
            used_s = (await state.database.run(access_sql.day_usage, tenant.name, day=day_of(now))).gpu_seconds
        # From here to `reserving` nothing is awaited: of many requests at once all would pass the
        # checks together, and each would find the queue as short as the first.
        max_queued = None if tenant is None else tenant.max_queued
        if full := state.waiting.full_error(new.tenant, max_queued, self._estimates.retry_after_s):
            return full
        decided = self._draft_if_late(new)
        booking = self._day_booking(tenant, decided, used_s)
        return self._quotas.refusal(tenant, booking, now, is_video=new.spec.kind is JobKind.VIDEO) or decided

    def _draft_if_late(self, new: Submission) -> Submission:
        """Its draft, if it may be one and would wait for too long otherwise."""
        limit_s = self._state.scheduling.draft_when_wait_over_s
        if new.draft is None or limit_s is None:
            return new
        wait_s = self._estimates.wait_s(new, [one.submission for one in self._being_written])
        return new.as_draft(wait_s, limit_s) if wait_s is not None and wait_s > limit_s else new

    @contextmanager
    def reserving(self, new: Submission) -> Iterator[None]:
        """Count a job while it is written, so that many at once do not pass the bounds together."""
        written = _BeingWritten(new, self._cost_s(new))
        self._being_written.append(written)
        self._estimates.note_accepted(new, written.cost_s)
        try:
            with self._state.waiting.reserving(new.tenant):
                yield
        finally:
            self._being_written.remove(written)

    def booked_s(self, tenant: str) -> float:
        """GPU-seconds of the tenant's live jobs: used so far, and still needed by the estimates."""
        live = (self._state.as_of_now(job) for job in self._state.feed.live_jobs() if job.tenant == tenant)
        return sum(job.device_s + self._left_s(job) for job in live)

    def _day_booking(self, tenant: Tenant | None, new: Submission, used_s: float) -> DayBooking:
        if tenant is None or tenant.gpu_seconds_per_day is None:  # nobody asks, and to sum up its jobs takes a while
            return NOTHING_BOOKED
        booked_s = self.booked_s(tenant.name) + self.reserved_s.get(tenant.name, 0.0)
        return DayBooking(used_s=used_s, booked_s=booked_s, cost_s=self._cost_s(new))

    def _left_s(self, job: Job) -> float:
        steps = job.spec.steps - job.step
        return sum(self._state.costs.estimate(stage, job.spec, steps) for stage in STAGES_FROM[job.stage])

    def _cost_s(self, new: Submission) -> float:
        return sum(self._state.costs.estimate(stage, new.spec, new.spec.steps) for stage in STAGES[new.spec.kind])
