"""Where each job stands: its place in the queue, and when it will likely start and end."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deployments.messages import STAGES, STEPPED, Directive, JobKind, ProteinSpec, Stage, VideoSpec
from serve_app.feed.publisher import FeedPublisher
from serve_app.jobs import Job, JobState, Place, Submission, Tier
from serve_app.registry.leases import Lease
from serve_app.registry.planning.pace import MAX_TIME_SHARE, MIN_AGE_S, Pace
from serve_app.registry.state import RegistryState
from serve_app.scheduling.estimates import StepTime
from serve_app.scheduling.forecast import Forecast, Pipeline, Running, Starting, Work, forecast
from serve_app.scheduling.shared_sampler import batch_of

# Seconds between two times that the places are published, for each waiting job.
PUBLISH_PAUSE_S = 0.0005
# The wait of a new job is forecast for itself while that takes no longer than this; else several have one forecast.
QUICK_S = 0.003
UNKNOWN_RETRY_S = 10
MAX_RETRY_S = 60


@dataclass(slots=True)
class _Wait:
    """Of a new job of one tenant and tier."""

    seconds: float | None  # None: it cannot be known
    at: float  # when that was so, on a monotonic clock
    until: float  # it is good until then


class QueueEstimates:
    """Places of all jobs, estimated anew when they are old, or lack the job that somebody asks for."""

    def __init__(self, state: RegistryState) -> None:
        self._state = state
        self._positions: dict[str, int] = {}  # of the jobs that wait
        self._forecasts: dict[str, Forecast] = {}  # of all live jobs; seconds from `_pace.done_at`
        self._room_in_s: dict[str | None, float] = {}  # by tenant; of any tenant under None
        self._pace = Pace()  # of the estimates: a forecast of a long queue takes a while
        self._published_at = 0.0  # `_pace.done_at` of what was published last
        self._waits: dict[tuple[str, Tier], _Wait] = {}

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
        if self._published_at != self._pace.done_at:
            self._published_at = self._pace.done_at
            job_ids = self._positions.keys() | self._forecasts.keys()
            feed.publish_places({job_id: self._place(job_id) for job_id in job_ids})

    def retry_after_s(self, tenant: str | None) -> int:
        """When there is likely room for another job: when the first of those that wait leaves its queue.

        Args:
            tenant: whose jobs must leave; None if it does not matter whose.
        """
        if not any(self._state.costs.is_measured(stage) for stage in STEPPED):
            return UNKNOWN_RETRY_S
        self._estimate_if_older(MIN_AGE_S)
        room_in_s = self._room_in_s.get(tenant)
        if room_in_s is None:
            return UNKNOWN_RETRY_S
        return max(1, min(MAX_RETRY_S, math.ceil(room_in_s - (time.monotonic() - self._pace.done_at))))

    def wait_s(self, new: Submission, being_written: Sequence[Submission]) -> float | None:
        """How long a new video would wait in all, beside its own work; None if that cannot be known.

        While nothing was measured and no sampler is there, it is until the first one is, if one was asked for.

        Args:
            new: is not accepted yet.
            being_written: were accepted before it, and wait as soon as SQL has them.
        """
        now, whose = time.monotonic(), (new.tenant, new.tier)
        known = self._waits.get(whose)
        if known is not None and now < known.until:
            return None if known.seconds is None else max(0.0, known.seconds - (now - known.at))
        busy_s = time.thread_time()
        seconds = self._forecast_wait_s(new, being_written, now)
        over_s = max(0.0, time.thread_time() - busy_s - QUICK_S)
        self._waits = {one: wait for one, wait in self._waits.items() if now < wait.until}
        self._waits[whose] = _Wait(seconds, now, now + over_s / MAX_TIME_SHARE)
        return seconds

    def note_accepted(self, new: Submission, cost_s: float) -> None:
        """Until their wait is forecast anew, the next ones of its tenant wait for this one too.

        Args:
            cost_s: its work, in seconds of a device.
        """
        wait = self._waits.get((new.tenant, new.tier)) if new.spec.kind is JobKind.VIDEO else None
        if wait is not None and wait.seconds is not None:
            wait.seconds += cost_s / max(1, len(self._state.replicas.alive(Stage.SAMPLING, time.monotonic())))

    def _forecast_wait_s(self, new: Submission, being_written: Sequence[Submission], now: float) -> float | None:
        state = self._state
        if state.costs.is_measured(Stage.SAMPLING):
            coming = [one.accepted(state.unix_time()) for one in (*being_written, new)]
            pipeline = _pipeline(state, now, [job for job in coming if not state.is_live(job.id)])
            found = forecast(pipeline).get(new.job_id)
            if found is not None:
                return max(0.0, found.finishes_in_s - pipeline.work_of(new.job_id).alone_s)
        if any(info.slots for info in state.replicas.alive(Stage.SAMPLING, now)):
            return None
        return min(state.start_times.starting_in_s(Stage.SAMPLING, now), default=None)

    def _has(self, job_id: str) -> bool:
        return job_id in self._positions or job_id in self._forecasts

    def _place(self, job_id: str) -> Place:
        forecast = self._forecasts.get(job_id)
        if forecast is None:
            return Place(self._positions.get(job_id), None, None)
        estimated_at = self._state.unix_time() - (time.monotonic() - self._pace.done_at)
        return Place(
            position=self._positions.get(job_id),
            starts_at=estimated_at + forecast.starts_in_s,
            finishes_at=estimated_at + forecast.finishes_in_s,
        )

    def _estimate_if_older(self, age_s: float) -> None:
        if not self._pace.is_due(age_s):
            return
        with self._pace.doing():
            begun_at = time.monotonic()
            waiting = {stage: self._state.waiting.order(stage) for stage in Stage}
            self._positions = {job.id: n for jobs in waiting.values() for n, job in enumerate(jobs)}
            self._forecasts = self._forecast_measured(begun_at)
            self._room_in_s = self._rooms(waiting)

    def _forecast_measured(self, now: float) -> dict[str, Forecast]:
        """Of the jobs of those kinds of which something was measured."""
        state = self._state
        measured = {kind for kind, stages in STAGES.items() if any(map(state.costs.is_measured, STEPPED & {*stages}))}
        if not measured:
            return {}
        pipeline = _pipeline(state, now)
        found = forecast(pipeline)
        if len(measured) == len(STAGES):
            return found
        return {job_id: one for job_id, one in found.items() if pipeline.work_of(job_id).kind in measured}

    def _rooms(self, waiting: Mapping[Stage, Sequence[Job]]) -> dict[str | None, float]:
        """When the first waiting job of each tenant, and of any (None), goes to a sampler, a decoder or an embedder."""
        rooms: dict[str | None, float] = {}
        for job in (*waiting[Stage.SAMPLING], *waiting[Stage.DECODING], *waiting[Stage.EMBEDDING]):
            if (found := self._forecasts.get(job.id)) is not None:
                for owner in (None, job.tenant):
                    rooms[owner] = min(found.starts_in_s, rooms.get(owner, math.inf))
        return rooms


def _pipeline(state: RegistryState, now: float, coming: Sequence[Job] = ()) -> Pipeline:
    """What the registry knows of all live jobs, as `forecast` takes it.

    Args:
        coming: jobs that are not live, and are taken to wait for their stage from now on.
    """
    works = _Works(state, {job.id: job for job in coming})
    leases = state.leases.all()
    queues = dict(state.waiting.queues)
    queues |= {stage: queues[stage].copy() for stage in {job.stage for job in coming}}
    for job in coming:
        queues[job.stage].put(state.waiting.entry(job, 0.0))
    return Pipeline(
        queues=queues,
        running=[_running(lease, now) for lease in leases],
        slots={stage: {info.replica: info.slots for info in state.replicas.alive(stage, now)} for stage in Stage},
        work_of=works.of_job,
        weight=state.weight,
        now=now,
        max_parks=state.scheduling.max_parks if state.scheduling.preemption else None,
        starting={stage: _starting(state, stage, now) for stage in Stage},
    )


def _starting(state: RegistryState, stage: Stage, now: float) -> list[Starting]:
    """The replicas of a stage that are on their way, as far as that is known."""
    wanted = state.wanted.get(stage)
    seconds = state.start_times.starting_in_s(stage, now)
    if any(info.slots for info in state.replicas.alive(stage, now)):
        seconds = [in_s for in_s in seconds if in_s > 0]  # one that is late may never come
    elif not seconds and wanted is not None and wanted.target == 0 and not state.scheduling.activation_gpu_s:
        seconds = [state.start_times.start_s(stage)]  # a job that waits has one asked for in a moment
    return [Starting(in_s, 1 if wanted is None else wanted.slots) for in_s in seconds]


def _running(lease: Lease, now: float) -> Running:
    return Running(
        lease.job_id,
        lease.stage,
        lease.replica,
        for_s=0.0 if lease.granted_at is None else now - lease.granted_at,
        charge=lease.charge,
        has_begun=lease.has_begun,
        is_leaving=lease.directive is not Directive.CONTINUE,
    )


class _Works:
    """The work of the jobs of one forecast; jobs of one kind have one set of estimates."""

    def __init__(self, state: RegistryState, coming: Mapping[str, Job]) -> None:
        self._state = state
        self._coming = coming
        self._costs: dict[tuple[object, ...], _Costs] = {}

    def of_job(self, job_id: str) -> Work:
        """The work of a live job, or one that comes."""
        state = self._state
        lease = state.leases.of_job(job_id)
        waiting = state.waiting.find(job_id)
        job = waiting or self._coming.get(job_id) if lease is None else lease.job
        assert job is not None, job_id
        is_waiting = lease is None and waiting is not None
        entry = state.waiting.queues[job.stage].entries[job_id] if is_waiting else state.waiting.entry(job, 0.0)
        steps_left = job.spec.steps - job.step if lease is None else lease.steps_left
        if isinstance(job.spec, ProteinSpec):
            return Work.of_proteins(entry, state.costs.held_s(Stage.EMBEDDING, job.spec, steps_left), job.parks)
        costs = self._costs_of(job.spec)
        return Work(
            entry=entry,
            encoding_s=costs.encoding_s,
            steps_left=steps_left,
            step=costs.step,
            beside_s=costs.beside_s,
            decoding_s=costs.decoding_s,
            batch=batch_of(job_id, job.spec),
            tokens=job.spec.clip.tokens,
            parks=job.parks,
        )

    def _costs_of(self, spec: VideoSpec) -> "_Costs":
        kind = (spec.clip, spec.plan.mean_full_rows, spec.lora_choice is not None)
        if kind not in self._costs:
            costs = self._state.costs
            self._costs[kind] = _Costs(
                encoding_s=costs.held_s(Stage.ENCODING, spec),
                step=costs.step_time(spec),
                beside_s=costs.held_s(Stage.SAMPLING, spec),
                decoding_s=costs.held_s(Stage.DECODING, spec),
            )
        return self._costs[kind]


class _Costs(NamedTuple):
    """Of jobs of one kind, as `Work` has them."""

    encoding_s: float
    step: StepTime
    beside_s: float
    decoding_s: float
