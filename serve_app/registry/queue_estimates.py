"""Where each job stands: its place in the queue, and when it will likely start and end, from measured step times."""

import math
import time
from collections.abc import Mapping, Sequence

from deployments.messages import Stage, VideoSpec
from serve_app.feed.publisher import FeedPublisher
from serve_app.jobs import Job, JobState, Place
from serve_app.registry.state import RegistryState
from serve_app.scheduling.estimates import Forecast, QueuedWork, forecast

MIN_AGE_S = 0.5
# A forecast of a long queue takes a while: no more than this share of the registry's time goes into it.
SHARE = 0.05
# Seconds between two messages to the followers, for each waiting job.
TELL_S = 0.0005
UNKNOWN_RETRY_S = 10
MAX_RETRY_S = 60


class QueueEstimates:
    """Places of all jobs, made anew when somebody asks and they are old, or lack the job that is asked for."""

    def __init__(self, state: RegistryState) -> None:
        self._state = state
        self._positions: dict[str, int] = {}
        self._coming: dict[str, Forecast] = {}
        self._made_at = -math.inf
        self._took = 0.0
        self._told_at = 0.0

    def place(self, job: Job) -> Place | None:
        """None for a job that has ended, or that came a moment ago to a long queue."""
        if job.final:
            return None
        self._refresh(job.id)
        running = job.state is not JobState.QUEUED
        if not running and job.id not in self._positions and job.id not in self._coming:
            return None
        return self._place(job.id).for_job(job)

    def tell(self, feed: FeedPublisher) -> None:
        """Bring the places that the followers know up to date, the less often the more of them there are."""
        self._make_if_older(max(MIN_AGE_S, len(self._positions) * TELL_S))
        if self._told_at != self._made_at:
            self._told_at = self._made_at
            feed.publish_places(
                {job_id: self._place(job_id) for job_id in self._positions.keys() | self._coming.keys()}
            )

    def _place(self, job_id: str) -> Place:
        made_at, coming = time.time() - (time.monotonic() - self._made_at), self._coming.get(job_id)
        starts = None if coming is None else made_at + coming.starts_in_s
        ends = None if coming is None else made_at + coming.finishes_in_s
        return Place(self._positions.get(job_id), starts, ends)

    def retry_after_s(self) -> int:
        """When there is room for another job: as long as a job holds its slot, over the slots."""
        leases, estimates = self._state.leases.of_stage(Stage.SAMPLING), _Estimates(self._state)
        slots = self._state.replicas.slots(Stage.SAMPLING, time.monotonic())
        if not slots or not leases or not self._state.costs.measured(Stage.SAMPLING):
            return UNKNOWN_RETRY_S
        mean_s = sum(estimates.sampling_s(lease.job, lease.job.spec.num_inference_steps) for lease in leases)
        return max(1, min(MAX_RETRY_S, math.ceil(mean_s / len(leases) / slots)))

    def _refresh(self, job_id: str) -> None:
        known = job_id in self._positions or job_id in self._coming
        self._make_if_older(MIN_AGE_S if known else 0.0)

    def _make_if_older(self, age_s: float) -> None:
        if time.monotonic() - self._made_at > max(age_s, self._took / SHARE):
            self._make()

    def _make(self) -> None:
        begun = time.monotonic()
        waiting = {stage: self._state.waiting.order(stage) for stage in Stage}
        self._positions = {job.id: n for jobs in waiting.values() for n, job in enumerate(jobs)}
        self._coming = self._forecast(waiting) if self._state.costs.measured(Stage.SAMPLING) else {}
        self._made_at = time.monotonic()
        self._took = self._made_at - begun

    def _forecast(self, waiting: Mapping[Stage, Sequence[Job]]) -> dict[str, Forecast]:
        """Those that must be encoded come after those that wait for a sampler: encoding is short."""
        leases, now, estimates = self._state.leases, time.monotonic(), _Estimates(self._state)
        encoding = [lease.job for lease in leases.of_stage(Stage.ENCODING)]
        to_sample = [*waiting[Stage.SAMPLING], *encoding, *waiting[Stage.ENCODING]]
        sampling = [
            (lease.job, estimates.sampling_s(lease.job, lease.steps_left)) for lease in leases.of_stage(Stage.SAMPLING)
        ]
        decoding = [(lease.job, estimates.decoding_s(lease.job)) for lease in leases.of_stage(Stage.DECODING)]
        ahead = [QueuedWork(job.id, estimates.sampling_s(job), estimates.decoding_s(job)) for job in to_sample]
        to_decode = [QueuedWork(job.id, estimates.decoding_s(job), 0.0) for job in waiting[Stage.DECODING]]
        coming = forecast(ahead, [left for _, left in sampling], self._state.replicas.slots(Stage.SAMPLING, now))
        coming |= forecast(to_decode, [left for _, left in decoding], self._state.replicas.slots(Stage.DECODING, now))
        coming |= {job.id: Forecast(0.0, left + estimates.decoding_s(job)) for job, left in sampling}
        return coming | {job.id: Forecast(0.0, left) for job, left in decoding}


class _Estimates:
    """Wall times of one forecast; jobs of one shape have one estimate."""

    def __init__(self, state: RegistryState) -> None:
        self._costs = state.costs
        self._known: dict[tuple[object, ...], float] = {}
        replicas = len(state.replicas.alive(Stage.SAMPLING, time.monotonic()))
        # Samples that share a replica: each of them gets its part of the device's time.
        self._crowd = max(1.0, len(state.leases.of_stage(Stage.SAMPLING)) / max(1, replicas))

    def sampling_s(self, job: Job, steps_left: int | None = None) -> float:
        steps = job.spec.num_inference_steps - job.step if steps_left is None else steps_left
        return self._estimate(Stage.SAMPLING, job.spec, steps) * self._crowd

    def decoding_s(self, job: Job) -> float:
        return self._estimate(Stage.DECODING, job.spec, 0)

    def _estimate(self, stage: Stage, spec: VideoSpec, steps: int) -> float:
        shape = (stage, spec.width, spec.height, spec.num_frames, spec.guidance_scale, steps)
        if shape not in self._known:
            self._known[shape] = self._costs.estimate(stage, spec, steps)
        return self._known[shape]
