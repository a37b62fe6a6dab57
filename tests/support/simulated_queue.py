"""A server in simulated time: the real queues, batches and rules of preemption, and times that only it knows.

It is written pass by pass, where the forecast has time flow, so that the two have in common
only what the product itself decides by. A moment costs nothing; nothing waits.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count

from deployments.clip import cfg_rows
from deployments.messages import Stage, VideoSpec
from deployments.sampler.step_batcher import Load, StepBatcher
from serve_app.jobs import NEXT_STAGE, Tier
from serve_app.scheduling.estimates import CostModel
from serve_app.scheduling.fair_queue import FairQueue
from serve_app.scheduling.fair_share import Charge, QueueEntry
from serve_app.scheduling.forecast import Pipeline, Running, Work
from serve_app.scheduling.preemption import HeldSlot, slots_to_open
from serve_app.scheduling.shared_sampler import batch_of

ALL = 1_000_000


@dataclass(frozen=True)
class TrueTimes:
    """What nothing but the simulation knows, in seconds."""

    encoding_s: float
    pass_s: float  # of each pass
    token_s: float  # of each token of each row in a step
    attention_s: float  # of each pair of tokens of a row in a step
    beside_s: float  # of a sample's slot, before its steps
    frame_s: float  # decoding, of each token
    noise: float = 0.1  # each span is wrong by up to this share

    def step_s(self, spec: VideoSpec) -> float:
        """What a sample adds to its pass."""
        tokens = spec.clip.tokens
        return cfg_rows(spec.guidance_scale) * (self.token_s * tokens + self.attention_s * tokens**2)


@dataclass(frozen=True)
class Machines:
    """The replicas."""

    samplers: int = 1
    sampler_slots: int = 1
    encoder_slots: int = 2
    decoder_slots: int = 1
    max_batch_tokens: int = 4000
    max_parks: int | None = 3


@dataclass
class SimulatedJob:
    """A job; what has been done of it is counted here."""

    job_id: str
    spec: VideoSpec
    tenant: str
    tier: Tier
    created_at: float
    stage: Stage = Stage.ENCODING
    steps_left: int = 0
    parks: int = 0
    waits_from: float = 0.0
    device_s: float = 0.0  # of its stage, not learned yet
    passes: float = 0.0
    steps_since: int = 0
    charge: Charge | None = None
    granted_at: float | None = None  # it holds a slot
    replica: int | None = None
    is_sampled: bool = False  # it has entered the batches
    is_leaving: bool = False
    finished_at: float | None = None


@dataclass
class _Sampler:
    batcher: StepBatcher[str]
    held: int = 0
    busy: bool = False


@dataclass
class SimulatedServer:
    """The server; `submit` jobs, `run` for a time, ask for `pipeline`, and see when jobs `finished_at`."""

    times: TrueTimes
    machines: Machines
    seed: int = 0
    promote_after_s: float = 600.0
    costs: CostModel = field(default_factory=CostModel)
    now: float = 0.0
    jobs: dict[str, SimulatedJob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queues = {stage: FairQueue(self._weight, self.promote_after_s) for stage in Stage}
        self._samplers = [_Sampler(StepBatcher(self.machines.max_batch_tokens)) for _ in range(self.machines.samplers)]
        self._open = {Stage.ENCODING: self.machines.encoder_slots, Stage.DECODING: self.machines.decoder_slots}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._random = random.Random(self.seed)

    # What a test does

    def submit(self, spec: VideoSpec, tenant: str, tier: Tier) -> SimulatedJob:
        job = SimulatedJob(f"{len(self.jobs):04}", spec, tenant, tier, self.now, waits_from=self.now)
        job.steps_left = spec.num_inference_steps
        self.jobs[job.job_id] = job
        self._put(job)
        self._fill()
        return job

    def run(self, until: float = float("inf")) -> None:
        """Go on until this moment, or until all jobs are finished."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heappop(self._events)
            act()
            self._fill()
        if until < float("inf"):
            self.now = max(self.now, until)

    @property
    def live(self) -> list[SimulatedJob]:
        return [job for job in self.jobs.values() if job.finished_at is None]

    def pipeline(self) -> Pipeline:
        """What a registry knows of it now."""
        held = [job for job in self.live if job.granted_at is not None]
        machines = self.machines
        return Pipeline(
            queues=self.queues,
            running=[
                Running(
                    job.job_id,
                    job.stage,
                    None if job.replica is None else str(job.replica),
                    self.now - (job.granted_at or 0.0),
                    job.charge,
                    is_leaving=job.is_leaving,
                )
                for job in held
            ],
            slots={
                Stage.ENCODING: {"e": machines.encoder_slots},
                Stage.SAMPLING: {str(n): machines.sampler_slots for n in range(machines.samplers)},
                Stage.DECODING: {"d": machines.decoder_slots},
            },
            work_of=lambda job_id: self._work(self.jobs[job_id]),
            weight=self._weight,
            now=self.now,
            max_parks=machines.max_parks,
        )

    def _work(self, job: SimulatedJob) -> Work:
        return Work(
            entry=self._entry(job),
            encoding_s=self.costs.held_s(Stage.ENCODING, job.spec),
            steps_left=job.steps_left,
            step=self.costs.step_time(job.spec),
            beside_s=self.costs.held_s(Stage.SAMPLING, job.spec),
            decoding_s=self.costs.held_s(Stage.DECODING, job.spec),
            batch=batch_of(job.job_id, job.spec),
            tokens=job.spec.clip.tokens,
            parks=job.parks,
        )

    # What the server does

    @staticmethod
    def _weight(tenant: str) -> float:
        return 3.0 if tenant == "b" else 1.0

    def _at(self, seconds: float, act: Callable[[], None]) -> None:
        heappush(self._events, (self.now + seconds, next(self._numbers), act))

    def _noisy(self, seconds: float) -> float:
        return seconds * (1 + self.times.noise * self._random.uniform(-1, 1))

    def _entry(self, job: SimulatedJob) -> QueueEntry:
        cost_s = self.costs.estimate(job.stage, job.spec, job.steps_left)
        order = (job.created_at, job.job_id)
        return QueueEntry(job.job_id, job.tenant, job.tier, order, job.waits_from, self.now, cost_s)

    def _put(self, job: SimulatedJob) -> None:
        self.queues[job.stage].put(self._entry(job))

    def _fill(self) -> None:
        for stage in (Stage.ENCODING, Stage.DECODING):
            while self._open[stage] > 0 and (job := self._take(stage)):
                self._open[stage] -= 1
                self._begin_short(job)
        while (sampler := self._free_sampler()) is not None and (job := self._take(Stage.SAMPLING)):
            self._begin_sampling(job, sampler)
        self._preempt()

    def _take(self, stage: Stage) -> SimulatedJob | None:
        found = self.queues[stage].take(self.now, ALL)
        if found is None:
            return None
        job = self.jobs[found[0].job_id]
        job.charge, job.granted_at = found[1], self.now
        return job

    def _begin_short(self, job: SimulatedJob) -> None:
        times = self.times
        tokens = job.spec.clip.tokens
        job.device_s = self._noisy(times.encoding_s if job.stage is Stage.ENCODING else times.frame_s * tokens)
        self._at(job.device_s, lambda: self._end_short(job))

    def _end_short(self, job: SimulatedJob) -> None:
        self._open[job.stage] += 1
        self.costs.observe_held(job.stage, job.spec, job.device_s)
        self._end_stage(job)

    def _free_sampler(self) -> int | None:
        free = [n for n, sampler in enumerate(self._samplers) if sampler.held < self.machines.sampler_slots]
        return min(free, key=lambda n: self._samplers[n].held) if free else None

    def _begin_sampling(self, job: SimulatedJob, sampler: int) -> None:
        job.replica = sampler
        self._samplers[sampler].held += 1
        self._at(self._noisy(self.times.beside_s), lambda: self._enter(job, sampler))

    def _enter(self, job: SimulatedJob, number: int) -> None:
        rows = cfg_rows(job.spec.guidance_scale)
        load = Load(job.spec.clip, job.spec.clip.tokens, rows, job.spec.exact, job.spec.lora_choice)
        job.is_sampled = True
        self._samplers[number].batcher.add(job.job_id, load)
        if not self._samplers[number].busy:
            self._begin_pass(number)

    def _begin_pass(self, number: int) -> None:
        sampler = self._samplers[number]
        batch = [self.jobs[job_id] for job_id in sampler.batcher.next_pass()]
        sampler.busy = bool(batch)
        if batch:
            took = self._noisy(self.times.pass_s + sum(self.times.step_s(job.spec) for job in batch))
            self._at(took, lambda: self._end_pass(number, batch, took))

    def _end_pass(self, number: int, batch: list[SimulatedJob], took: float) -> None:
        self._samplers[number].batcher.count_pass([job.job_id for job in batch], took)
        loads = [job.spec.clip.tokens * cfg_rows(job.spec.guidance_scale) for job in batch]
        for job, load in zip(batch, loads, strict=True):
            job.steps_left -= 1
            job.steps_since += 1
            job.passes += load / sum(loads)
            job.device_s += took * load / sum(loads)
        leaving = [job for job in self.live if job.replica == number and job.is_sampled]
        for job in leaving:
            if job.steps_left == 0 or job.is_leaving:
                self._leave(job, number)
        self._begin_pass(number)

    def _leave(self, job: SimulatedJob, number: int) -> None:
        sampler = self._samplers[number]
        sampler.batcher.remove(job.job_id)
        sampler.held -= 1
        job.replica, job.is_sampled = None, False
        if job.steps_left == 0:
            self.costs.observe_held(Stage.SAMPLING, job.spec, self.times.beside_s)
        self._end_stage(job)

    def _end_stage(self, job: SimulatedJob) -> None:
        """Learn, settle, and go on: to the next stage, or back to the queue if it was parked."""
        self.costs.observe(job.stage, job.spec, job.steps_since, job.device_s, job.passes)
        assert job.charge is not None
        self.queues[job.stage].settle(job.charge, job.device_s)
        job.device_s, job.passes, job.steps_since = 0.0, 0.0, 0
        job.charge, job.granted_at = None, None
        if job.stage is Stage.SAMPLING and job.steps_left:
            job.is_leaving = False
            job.parks += 1
            job.waits_from = self.now
        else:
            following = NEXT_STAGE[job.stage]
            if following is None:
                job.finished_at = self.now
                return
            job.stage = following
        self._put(job)

    def _preempt(self) -> None:
        queue = self.queues[Stage.SAMPLING]
        if self.machines.max_parks is None or not queue.count_available(self.now)[Tier.INTERACTIVE]:
            return
        urgent = 0
        for entry in queue.order(self.now):
            if entry.tier is not Tier.INTERACTIVE:
                break
            urgent += 1
        held = [
            HeldSlot(
                job.job_id,
                job.tier,
                job.spec.clip.tokens,
                job.steps_left,
                job.parks,
                has_begun=job.is_sampled,
                is_leaving=job.is_leaving,
            )
            for job in self.live
            if job.replica is not None
        ]
        for slot in slots_to_open(held, urgent, 0, self.machines.max_parks):
            self.jobs[slot.job_id].is_leaving = True


def spec_of(
    width: int, height: int, num_frames: int, steps: int, guidance: float = 4.5, exact: bool = False
) -> VideoSpec:
    """A video of this size and length."""
    return replace(VideoSpec("a", "", width, height, num_frames, 24, steps, guidance, 1), exact=exact)
