"""When each live job will start and finish: the pipeline is run ahead of time. Pure.

The fair queues of all stages are copied and served as the dispatcher serves them (tiers, tenants,
pauses, preemption), with the times that `estimates` gives: a slot of the encoder, of the decoder and
of an embedder of proteins is held for a while, a sampler shares its time among its samples
(`shared_sampler`). So the forecast is right if the times are, and if nothing else comes. Replicas
that are starting come when they are likely there.

That costs some ten microseconds a move, so only the first moves of a long queue are made. Those
behind them wait until all before them have been sampled, at a second of work a second and sampler.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf
from operator import itemgetter
from typing import NamedTuple, Self

from deployments.messages import JobKind, Stage
from serve_app.jobs import NEXT_STAGE, TIERS, Tier
from serve_app.scheduling.estimates import StepTime
from serve_app.scheduling.fair_queue import FairQueue
from serve_app.scheduling.fair_share import Charge, QueueEntry
from serve_app.scheduling.preemption import HeldSlot, slots_to_open
from serve_app.scheduling.shared_sampler import SharedSampler, SharingSample

MAX_CLAIMS = 600  # jobs taken out of a queue, of all stages, before the rest is only summed up
_SHORT = (Stage.ENCODING, Stage.DECODING)
_BEFORE_SAMPLES = (Stage.SAMPLING, Stage.ENCODING)
_ALL_SUSPECTS = 1_000_000  # where suspects wait for one another is not forecast


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of a live job, from the stage that it runs or waits for."""

    entry: QueueEntry  # as it waits for its stage, or would
    encoding_s: float  # it holds a slot of the encoder so long
    steps_left: int
    step: StepTime
    beside_s: float  # it holds a slot of a sampler so long beside its steps
    decoding_s: float  # it holds a slot of the decoder so long
    batch: Hashable  # see `batch_of` in `shared_sampler`
    tokens: int  # of its latents
    parks: int  # how often it was parked
    kind: JobKind = JobKind.VIDEO
    embedding_s: float = 0.0  # of proteins: they hold a slot of an embedder so long

    @classmethod
    def of_proteins(cls, entry: QueueEntry, embedding_s: float, parks: int) -> Self:
        """What is left of a file: nothing but the embedding."""
        return cls(
            entry=entry,
            encoding_s=0.0,
            steps_left=0,
            step=StepTime(0.0, 0.0),
            beside_s=0.0,
            decoding_s=0.0,
            batch=entry.job_id,
            tokens=0,
            parks=parks,
            kind=JobKind.PROTEINS,
            embedding_s=embedding_s,
        )

    @property
    def sampling_s(self) -> float:
        """Seconds of a device, alone."""
        return max(1, self.steps_left) * (self.step.pass_s + self.step.sample_s)

    @property
    def alone_s(self) -> float:
        """Seconds that it takes from the encoder on, if nothing else is there."""
        return self.encoding_s + self.sampling_s + self.beside_s + self.decoding_s + self.embedding_s


@dataclass(frozen=True, slots=True)
class Running:
    """A job that holds a slot."""

    job_id: str
    stage: Stage
    replica: str | None  # None until one was chosen
    for_s: float  # it has held the slot so long
    charge: Charge | None = None  # what its tenant was booked
    has_begun: bool = True
    is_leaving: bool = False  # it was told to stop or to park


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a job is likely to start and to end, in seconds from now."""

    starts_in_s: float  # a sampler takes it, or an embedder, or, when it was sampled, a decoder
    finishes_in_s: float  # the whole job is done


class Starting(NamedTuple):
    """A replica that is not there yet."""

    in_s: float  # it is likely there then
    slots: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """All live jobs, and the slots that there are.

    Args:
        queues: of each stage; they are not changed.
        running: the jobs that hold slots.
        slots: of the replicas of each stage, by replica.
        work_of: what is left of a job; asked once for each job.
        weight: a tenant's share, > 0.
        now: on the clock of the queues.
        max_parks: a job that was parked this often is not parked again; None if none is.
        starting: the replicas of each stage that are on their way.
    """

    queues: Mapping[Stage, FairQueue]
    running: Sequence[Running]
    slots: Mapping[Stage, Mapping[str, int]]
    work_of: Callable[[str], Work]
    weight: Callable[[str], float]
    now: float
    max_parks: int | None
    starting: Mapping[Stage, Sequence[Starting]] = field(default_factory=dict)


def forecast(pipeline: Pipeline, max_claims: int = MAX_CLAIMS) -> dict[str, Forecast]:
    """The forecast of each live job, by id; without samplers or embedders, there or starting, none of who needs one."""
    run = _Run(pipeline)
    run.until_done(max_claims)
    return run.forecasts()


@dataclass(slots=True)
class _Run:
    pipeline: Pipeline
    at: float = 0.0  # seconds from the begin
    claims: int = 0
    queues: dict[Stage, FairQueue] = field(init=False)
    open_slots: dict[Stage, int] = field(init=False)  # of all but the samplers
    samplers: dict[str | None, SharedSampler] = field(init=False)
    coming: list[tuple[float, Stage, int]] = field(init=False)  # when replicas come and with how many slots, sorted
    works: dict[str, Work] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)  # of the samples
    places: dict[str, str | None] = field(default_factory=dict)  # the sampler of a sample
    parkable: set[str] = field(default_factory=set)  # samples that may make room for an urgent job
    changed: set[Stage] = field(default_factory=lambda: set(Stage))  # stages with new jobs or slots
    ends: list[tuple[float, str, Stage]] = field(default_factory=list)  # a heap: when slots become free
    starts_at: dict[str, float] = field(default_factory=dict)
    finishes_at: dict[str, float] = field(default_factory=dict)
    sampled_s: float = 0.0  # the work of the samples that were done

    def __post_init__(self) -> None:
        pipeline = self.pipeline
        self.queues = {stage: queue.copy() for stage, queue in pipeline.queues.items()}
        self.coming = sorted(
            (new.in_s, stage, new.slots) for stage in Stage for new in pipeline.starting.get(stage, ())
        )
        on_their_way = {stage for _, stage, _ in self.coming}
        # An encoder or decoder of which nothing is known is taken to be there: its slot is short, a sampler's is not.
        self.open_slots = {
            stage: sum(replicas.values()) or int(stage in _SHORT and stage not in on_their_way)
            for stage, replicas in pipeline.slots.items()
        }
        self.samplers = {name: SharedSampler(slots) for name, slots in pipeline.slots[Stage.SAMPLING].items()}
        for job in pipeline.running:
            self._resume(job)

    def until_done(self, max_claims: float, stages: Sequence[Stage] = tuple(Stage)) -> None:
        """Serve the queues of these stages until they are empty, or no slot ever opens, or so many were claimed."""
        while self.claims < max_claims:
            for stage in stages:
                if stage in self.changed:
                    self.changed.discard(stage)
                    self._fill(stage)
            next_at = self._next_moment(stages)
            if next_at is None:
                return
            self.at = next_at
            self._end_what_is_due()

    def forecasts(self) -> dict[str, Forecast]:
        """Of all jobs; call it last."""
        cut_at, before_s = self.at, sum(self._left_s(job_id) for job_id in self.places)
        samplers_at = [at for at, stage, _ in self.coming if stage is Stage.SAMPLING]
        if samplers_at and not self._count_samplers():
            cut_at = samplers_at[0]
        # The jobs that hold slots go on, and nothing new is sampled or encoded.
        self.until_done(inf, stages=(Stage.DECODING, Stage.EMBEDDING))
        return self._rest(cut_at, before_s) | {
            job_id: Forecast(self.starts_at.get(job_id, 0.0), finishes_at)
            for job_id, finishes_at in self.finishes_at.items()
        }

    # The moves of a job

    def _resume(self, job: Running) -> None:
        work = self._work(job.job_id)
        if job.stage is not Stage.ENCODING:
            self.starts_at[job.job_id] = 0.0
        if job.stage is Stage.SAMPLING:
            if job.charge is not None:
                self.charges[job.job_id] = job.charge
            self._sample(job.job_id, work, job.replica, may_be_parked=job.has_begun and not job.is_leaving)
        else:
            self.open_slots[job.stage] = self.open_slots.get(job.stage, 0) - 1
            left_s = self._held_s(job.stage, work) - job.for_s
            heappush(self.ends, (max(0.0, left_s), job.job_id, job.stage))

    def _fill(self, stage: Stage) -> None:
        if stage is not Stage.SAMPLING:
            while self.open_slots.get(stage, 0) > 0 and (job_id := self._take(stage)):
                self.open_slots[stage] -= 1
                heappush(self.ends, (self.at + self._held_s(stage, self._work(job_id)), job_id, stage))
            return
        while self._has_open_sampler() or self._park_for_urgent():
            if (job_id := self._take(stage)) is None:
                return
            self._sample(job_id, self._work(job_id), None)

    def _take(self, stage: Stage) -> str | None:
        found = self.queues[stage].take(self.pipeline.now + self.at, _ALL_SUSPECTS)
        if found is None:
            return None
        entry, charge = found
        self.claims += 1
        if stage is not Stage.ENCODING:
            self.starts_at.setdefault(entry.job_id, self.at)
        if stage is Stage.SAMPLING:
            self.charges[entry.job_id] = charge
        return entry.job_id

    def _sample(self, job_id: str, work: Work, replica: str | None, may_be_parked: bool = True) -> None:
        if replica is None and self.samplers:
            replica = max(self.samplers, key=lambda name: self.samplers[name].open_slots)
        sampler = self.samplers.setdefault(replica, SharedSampler(0))  # a replica that leaves ends what it has
        self.places[job_id] = replica
        sampler.add(job_id, SharingSample(work.steps_left, work.step, work.batch), self.at)
        max_parks = self.pipeline.max_parks
        if may_be_parked and max_parks is not None and work.parks < max_parks and work.entry.tier is not TIERS[0]:
            self.parkable.add(job_id)

    def _end_what_is_due(self) -> None:
        while self.coming and self.coming[0][0] <= self.at:
            _, stage, slots = self.coming.pop(0)
            self.changed.add(stage)
            if stage is Stage.SAMPLING:
                self.samplers[f"starting {len(self.samplers)}"] = SharedSampler(slots)
            else:
                self.open_slots[stage] = self.open_slots.get(stage, 0) + slots
        while self.ends and self.ends[0][0] <= self.at:
            _, job_id, stage = heappop(self.ends)
            self.changed.add(stage)
            if stage is Stage.SAMPLING:
                self.samplers[self.places.pop(job_id)].held -= 1
            else:
                self.open_slots[stage] += 1
            self._go_on(job_id, stage)
        for sampler in self.samplers.values():
            while (end := sampler.next_end()) is not None and end[0] <= self.at:
                sampler.remove(end[1], self.at)
                self.parkable.discard(end[1])
                work = self._work(end[1])
                self.sampled_s += work.sampling_s
                heappush(self.ends, (self.at + work.beside_s, end[1], Stage.SAMPLING))

    def _go_on(self, job_id: str, stage: Stage) -> None:
        """To the queue of the next stage; a stage without a replica is never ended."""
        following = NEXT_STAGE[stage]
        if following is None:
            self.finishes_at[job_id] = self.at
            return
        work = self._work(job_id)
        cost_s = work.sampling_s if following is Stage.SAMPLING else max(work.decoding_s, 1e-9)
        self.changed.add(following)
        self.queues[following].put(replace(work.entry, not_before=self.pipeline.now + self.at, cost_s=cost_s))

    def _next_moment(self, stages: Sequence[Stage]) -> float | None:
        moments = [end[0] for sampler in self.samplers.values() if (end := sampler.next_end()) is not None]
        if self.ends:
            moments.append(self.ends[0][0])
        if self.coming:
            moments.append(self.coming[0][0])
        for stage in stages:
            if (pause_end := self.queues[stage].next_pause_end(self.pipeline.now + self.at)) is not None:
                moments.append(pause_end - self.pipeline.now)
                self.changed.add(stage)
        return max(self.at, min(moments)) if moments else None

    # Room for urgent jobs

    def _has_open_sampler(self) -> bool:
        return any(sampler.open_slots > 0 for sampler in self.samplers.values())

    def _park_for_urgent(self) -> bool:
        """Park a sample if the next job is urgent and may have its slot; whether a slot is open now."""
        queue, now = self.queues[Stage.SAMPLING], self.pipeline.now + self.at
        if not self.parkable or self.pipeline.max_parks is None or not queue.count_available(now)[Tier.INTERACTIVE]:
            return False
        head = queue.head(now)
        if head is None or head.tier is not Tier.INTERACTIVE:
            return False
        slots = slots_to_open(self._held_slots(), urgent=1, open_slots=0, max_parks=self.pipeline.max_parks)
        for slot in slots:
            self._park(slot.job_id)
        return bool(slots)

    def _held_slots(self) -> Iterable[HeldSlot]:
        for sampler in self.samplers.values():
            for job_id, steps_left in sampler.steps_left(self.at).items():
                work = self._work(job_id)
                yield HeldSlot(
                    job_id=job_id,
                    tier=work.entry.tier,
                    tokens=work.tokens,
                    steps_left=round(steps_left),
                    parks=work.parks,
                    has_begun=job_id in self.parkable,
                )

    def _park(self, job_id: str) -> None:
        sampler = self.samplers[self.places.pop(job_id)]
        steps_left = sampler.remove(job_id, self.at)
        sampler.held -= 1
        self.parkable.discard(job_id)
        before = self._work(job_id)
        now = self.pipeline.now + self.at
        # Its credit begins anew, as `WaitingJobs` has it.
        entry = replace(before.entry, since=now, not_before=now)
        after = replace(before, steps_left=max(1, round(steps_left)), parks=before.parks + 1, entry=entry)
        self.works[job_id] = after
        queue = self.queues[Stage.SAMPLING]
        queue.put(replace(entry, cost_s=after.sampling_s))
        if (charge := self.charges.pop(job_id, None)) is not None:
            queue.settle(charge, max(0.0, charge.cost_s - after.sampling_s))

    # What is behind the moves that were made

    def _rest(self, cut_at: float, before_s: float) -> dict[str, Forecast]:
        """The jobs that still wait, by the sum of the work before each; none without samplers.

        Args:
            cut_at: seconds from the begin; no more jobs were sampled from then on, or until then.
            before_s: the work that the samplers held then.
        """
        devices = self._count_samplers() + sum(stage is Stage.SAMPLING for _, stage, _ in self.coming)
        if not devices:
            return {}
        done_s = self.sampled_s - before_s
        rate = max(float(devices), done_s / cut_at if cut_at else 0.0)  # seconds of work a second
        found = {}
        for entry in self._in_fair_order():
            work = self._work(entry.job_id)
            encoding_s = work.encoding_s if entry.job_id in self.queues[Stage.ENCODING] else 0.0
            starts_at = cut_at + before_s / rate + encoding_s
            tail_s = work.sampling_s + work.beside_s + work.decoding_s
            before_s += work.sampling_s
            found[entry.job_id] = Forecast(self.starts_at.get(entry.job_id, starts_at), starts_at + tail_s)
        return found

    def _count_samplers(self) -> int:
        """Those that have slots, and are there by now."""
        return sum(sampler.slots > 0 for sampler in self.samplers.values())

    def _in_fair_order(self) -> list[QueueEntry]:
        """The jobs that still wait for the encoder or a sampler: tiers, in each fair shares from here on."""
        waiting = [entry for stage in _BEFORE_SAMPLES for entry in self.queues[stage].entries.values()]
        shares: defaultdict[tuple[Tier, str], float] = defaultdict(float)
        ranked = []
        for entry in sorted(waiting, key=lambda entry: entry.order):
            shares[entry.tier, entry.tenant] += self._work(entry.job_id).sampling_s / self.pipeline.weight(entry.tenant)
            ranked.append((TIERS.index(entry.tier), shares[entry.tier, entry.tenant], entry.order, entry))
        return [entry for *_, entry in sorted(ranked, key=itemgetter(0, 1, 2))]

    def _left_s(self, job_id: str) -> float:
        work = self._work(job_id)
        steps = self.samplers[self.places[job_id]].steps_left(self.at).get(job_id, 0.0)
        return steps * (work.step.pass_s + work.step.sample_s)

    def _work(self, job_id: str) -> Work:
        if job_id not in self.works:
            self.works[job_id] = self.pipeline.work_of(job_id)
        return self.works[job_id]

    @staticmethod
    def _held_s(stage: Stage, work: Work) -> float:
        if stage is Stage.EMBEDDING:
            return work.embedding_s
        return work.encoding_s if stage is Stage.ENCODING else work.decoding_s
