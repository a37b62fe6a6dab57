"""Whether one more job may be accepted: it fits a sampler, there is room in the queue, its tenant has a share left."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.messages import Stage, VideoSpec
from serve_app.access.limits import DayBooking, Quotas
from serve_app.access.tenants import day_of
from serve_app.database import access as access_sql
from serve_app.errors import QueueFullError, RateLimitError, TooLargeError
from serve_app.jobs import Job, Submission
from serve_app.registry.queue_estimates import QueueEstimates
from serve_app.registry.state import RegistryState
from serve_app.scheduling.fitting import memory_limit

Refusal = TooLargeError | QueueFullError | RateLimitError


class AdmissionControl:
    """Asked by the registry for each new job."""

    def __init__(self, state: RegistryState, estimates: QueueEstimates) -> None:
        self._state = state
        self._estimates = estimates
        self._quotas = Quotas(time.monotonic)
        self._coming_s: defaultdict[str, float] = defaultdict(float)

    async def refusal(self, new: Submission) -> Refusal | None:
        """Why the job may not be accepted; a request that may be is counted against its tenant's limits.

        Raises:
            RegistryUnavailableError: what the tenant has used cannot be read now.
        """
        state, account = self._state, self._state.access.tenants.get(new.tenant)
        samplers = state.replicas.alive(Stage.SAMPLING, time.monotonic())
        tokens, limit = new.spec.clip.tokens, memory_limit(samplers)
        if limit is not None and tokens > limit:
            return TooLargeError(tokens, limit)
        # Nothing is waited for between the checks and `coming`: many at once would pass them together.
        now, used_s = time.time(), 0.0
        if account is not None and account.gpu_seconds_per_day is not None:
            used_s = (await state.database.run(access_sql.day_usage, account.name, day=day_of(now))).gpu_seconds
        max_queued = None if account is None else account.max_queued
        full = state.waiting.refusal(new.tenant, max_queued, self._estimates.retry_after_s)
        if full is not None:
            return full
        booked_s = 0.0
        if account is not None and account.gpu_seconds_per_day is not None:
            booked_s = self._booked_s(account.name) + self._coming_s.get(account.name, 0.0)
        booking = DayBooking(used_s=used_s, booked_s=booked_s, cost_s=self._cost_s(new.spec))
        return self._quotas.refusal(account, booking, now)

    @contextmanager
    def coming(self, new: Submission) -> Iterator[None]:
        """Counts a job that is being written, so that many at once do not pass the bounds together."""
        cost_s = self._cost_s(new.spec)
        self._coming_s[new.tenant] += cost_s
        try:
            with self._state.waiting.coming(new.tenant):
                yield
        finally:
            self._coming_s[new.tenant] -= cost_s
            if self._coming_s[new.tenant] < 1e-9:  # clients make up the names of tenants: none may stay
                del self._coming_s[new.tenant]

    def _booked_s(self, tenant: str) -> float:
        """GPU-seconds of the tenant's live jobs: spent so far, and as estimated until they end."""
        live = (self._state.as_of_now(job) for job in self._state.feed.live_jobs() if job.tenant == tenant)
        return sum(job.device_s + self._left_s(job) for job in live)

    def _left_s(self, job: Job) -> float:
        steps = job.spec.num_inference_steps - job.step
        stages = list(Stage)[list(Stage).index(job.stage) :]
        return sum(self._state.costs.estimate(stage, job.spec, steps) for stage in stages)

    def _cost_s(self, spec: VideoSpec) -> float:
        return sum(self._state.costs.estimate(stage, spec, spec.num_inference_steps) for stage in Stage)
