"""Where each job stands: its place in the queue, and when it will likely start and end."""

import math
import time
from collections.abc import Mapping, Sequence

from deployments.messages import Stage, VideoSpec
from serve_app.feed.publisher import FeedPublisher
from serve_app.jobs import Job, JobState, Place
from serve_app.registry.state import RegistryState
from serve_app.scheduling.estimates import Forecast, QueuedWork, forecast

MIN_AGE_S = 0.5
# A forecast of a long queue takes a while: no more than this share of the registry's time goes into
# it.
MAX_TIME_SHARE = 0.05
# Seconds between two times that the places are published, for each waiting job.
PUBLISH_PAUSE_S = 0.0005
UNKNOWN_RETRY_S = 10
MAX_RETRY_S = 60


class QueueEstimates:
    """Places of all jobs, estimated anew when they are old, or lack the job that somebody asks for."""

    def __init__(self, state: RegistryState) -> None:
        self._state = state
        self._positions: dict[str, int] = {}  # of the jobs that wait
        self._forecasts: dict[str, Forecast] = {}  # of all live jobs; seconds from `_estimated_at`
        self._estimated_at = -math.inf
        self._estimating_s = 0.0  # how long the last estimate took
        self._published_at = 0.0  # `_estimated_at` of what was published last

    def place(self, job: Job) -> Place | None:
        """None for a job that has ended, or that came a moment ago to a long queue."""
        if job.final:
            return None
        self._estimate_if_older(MIN_AGE_S if self._has(job.id) else 0.0)
        if job.state is JobState.QUEUED and not self._has(job.id):
            return None
        return self._place(job.id).for_job(job)

    def publish(self, feed: FeedPublisher) -> None:
        """Bring the places that the followers have up to date, less often if there are many."""
        self._estimate_if_older(max(MIN_AGE_S, len(self._positions) * PUBLISH_PAUSE_S))
        if self._published_at != self._estimated_at:
            self._published_at = self._estimated_at
            job_ids = self._positions.keys() | self._forecasts.keys()
            feed.publish_places({job_id: self._place(job_id) for job_id in job_ids})

    def retry_after_s(self) -> int:
        """When there is room for another job: as long as a job holds its slot, over the slots."""
        leases = self._state.leases.of_stage(Stage.SAMPLING)
        slots = self._state.replicas.slots(Stage.SAMPLING, time.monotonic())
        if not slots or not leases or not self._state.costs.is_measured(Stage.SAMPLING):
            return UNKNOWN_RETRY_S
        times = _WallTimes(self._state)
        mean_s = sum(times.sampling_s(lease.job, lease.job.spec.num_inference_steps) for lease in leases) / len(leases)
        return max(1, min(MAX_RETRY_S, math.ceil(mean_s / slots)))

    def _has(self, job_id: str) -> bool:
        return job_id in self._positions or job_id in self._forecasts

    def _place(self, job_id: str) -> Place:
        forecast = self._forecasts.get(job_id)
        if forecast is None:
            return Place(self._positions.get(job_id), None, None)
        estimated_at = self._state.unix_time() - (time.monotonic() - self._estimated_at)
        return Place(
            position=self._positions.get(job_id),
            starts_at=estimated_at + forecast.starts_in_s,
            finishes_at=estimated_at + forecast.finishes_in_s,
        )

    def _estimate_if_older(self, age_s: float) -> None:
        begun_at = time.monotonic()
        if begun_at - self._estimated_at <= max(age_s, self._estimating_s / MAX_TIME_SHARE):
            return
        waiting = {stage: self._state.waiting.order(stage) for stage in Stage}
        self._positions = {job.id: n for jobs in waiting.values() for n, job in enumerate(jobs)}
        self._forecasts = self._forecast(waiting) if self._state.costs.is_measured(Stage.SAMPLING) else {}
        self._estimated_at = time.monotonic()
        self._estimating_s = self._estimated_at - begun_at

    def _forecast(self, waiting: Mapping[Stage, Sequence[Job]]) -> dict[str, Forecast]:
        """Jobs that must be encoded come after those that wait for a sampler: encoding is short."""
        leases, replicas = self._state.leases, self._state.replicas
        times = _WallTimes(self._state)
        now = time.monotonic()
        sampling_left_s = {
            lease.job_id: times.sampling_s(lease.job, lease.steps_left) for lease in leases.of_stage(Stage.SAMPLING)
        }
        decoding_left_s = {lease.job_id: times.decoding_s(lease.job) for lease in leases.of_stage(Stage.DECODING)}
        encoding = [lease.job for lease in leases.of_stage(Stage.ENCODING)]
        to_sample = [
            QueuedWork(job.id, wall_s=times.sampling_s(job), tail_s=times.decoding_s(job))
            for job in (*waiting[Stage.SAMPLING], *encoding, *waiting[Stage.ENCODING])
        ]
        to_decode = [QueuedWork(job.id, wall_s=times.decoding_s(job), tail_s=0.0) for job in waiting[Stage.DECODING]]
        forecasts = forecast(to_sample, list(sampling_left_s.values()), replicas.slots(Stage.SAMPLING, now))
        forecasts |= forecast(to_decode, list(decoding_left_s.values()), replicas.slots(Stage.DECODING, now))
        for lease in leases.of_stage(Stage.SAMPLING):
            end_s = sampling_left_s[lease.job_id] + times.decoding_s(lease.job)
            forecasts[lease.job_id] = Forecast(starts_in_s=0.0, finishes_in_s=end_s)
        for job_id, left_s in decoding_left_s.items():
            forecasts[job_id] = Forecast(starts_in_s=0.0, finishes_in_s=left_s)
        return forecasts


class _WallTimes:
    """Wall times of one forecast; jobs of one shape have one estimate."""

    def __init__(self, state: RegistryState) -> None:
        self._costs = state.costs
        self._estimates: dict[tuple[object, ...], float] = {}
        replicas = len(state.replicas.alive(Stage.SAMPLING, time.monotonic()))
        # Samples that share a replica: each of them gets its part of the device's time.
        self._samples_per_replica = max(1.0, len(state.leases.of_stage(Stage.SAMPLING)) / max(1, replicas))

    def sampling_s(self, job: Job, steps_left: int | None = None) -> float:
        steps = job.spec.num_inference_steps - job.step if steps_left is None else steps_left
        return self._estimate(Stage.SAMPLING, job.spec, steps) * self._samples_per_replica

    def decoding_s(self, job: Job) -> float:
        return self._estimate(Stage.DECODING, job.spec, 0)

    def _estimate(self, stage: Stage, spec: VideoSpec, steps: int) -> float:
        shape = (stage, spec.width, spec.height, spec.num_frames, spec.guidance_scale, steps)
        if shape not in self._estimates:
            self._estimates[shape] = self._costs.estimate(stage, spec, steps)
        return self._estimates[shape]
