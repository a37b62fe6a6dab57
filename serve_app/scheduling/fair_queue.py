"""The order of the jobs that wait for a stage: tiers, and in each tier fair shares. Pure.

Between tiers priority is strict, but a job goes one tier up for each `promote_after_s` that it has
waited. Inside a tier tenants share by `fair_share`, whose text says what follows from it. A job
that has waited one more span in the highest tier is overdue, and its credit grows from then on:
nothing waits for ever.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from heapq import merge
from math import inf
from operator import itemgetter
from types import MappingProxyType

from serve_app.jobs import TIERS, Tier
from serve_app.scheduling.fair_share import Charge, Item, QueueEntry, TierShares, sort_item

# An overdue tenant runs ahead of its share by this many GPU-seconds (over its weight) for each
# second it waits: small, so that a long queue of old jobs does not push aside the small ones of
# others.
CREDIT_GROWTH = 0.1

_Agenda = list[tuple[float, str]]  # (moment, job id), sorted


@dataclass(frozen=True, slots=True)
class FairQueueSnapshot:
    """What a queue holds at a moment."""

    job_ids: frozenset[str]  # of all jobs that wait, also in a pause
    jobs_of_tenant: dict[str, int]  # how many of them each tenant has
    backlog: int  # how many of them are available and have their turn in a tier
    unsettled: int  # charges of jobs that were taken out, not settled yet


class FairQueue:
    """The jobs that wait for one stage.

    Args:
        weight: a tenant's share, > 0.
        promote_after_s: a job that has waited this long goes with the tier above.
    """

    def __init__(self, weight: Callable[[str], float], promote_after_s: float) -> None:
        if promote_after_s <= 0:
            raise ValueError(f"promote_after_s is {promote_after_s}; it must be more than 0")
        self._span_s = promote_after_s
        self._now = -inf  # the latest moment that take() was given
        self._shares = {tier: TierShares(weight) for tier in TIERS}
        self._entries: dict[str, QueueEntry] = {}  # by job id
        self._current_tiers: dict[str, Tier] = {}  # of the jobs that joined a share; the others are in _pauses
        self._pauses: _Agenda = []  # when the pauses between attempts end
        self._promotions: _Agenda = []  # when jobs rise to the tier above
        self._available: Counter[Tier] = Counter()  # jobs that joined a share, by the tier they were submitted in
        self._jobs_of_tenant: Counter[str] = Counter()

    def copy(self) -> "FairQueue":
        """One that goes on from here by itself: a forecast serves it empty."""
        made = copy(self)
        made._shares = {tier: share.copy() for tier, share in self._shares.items()}
        made._entries = self._entries.copy()
        made._current_tiers = self._current_tiers.copy()
        made._pauses = self._pauses.copy()
        made._promotions = self._promotions.copy()
        made._available = self._available.copy()
        made._jobs_of_tenant = self._jobs_of_tenant.copy()
        return made

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._entries

    @property
    def entries(self) -> Mapping[str, QueueEntry]:
        """All jobs that wait, as they were put in, by id."""
        return MappingProxyType(self._entries)

    def count(self, tenant: str) -> int:
        """Jobs of the tenant that wait, also in a pause."""
        return self._jobs_of_tenant[tenant]

    def snapshot(self) -> FairQueueSnapshot:
        """For tests and for people: what the queue holds now."""
        return FairQueueSnapshot(
            job_ids=frozenset(self._entries),
            jobs_of_tenant=dict(self._jobs_of_tenant),
            backlog=sum(share.backlog for share in self._shares.values()),
            unsettled=sum(share.unsettled for share in self._shares.values()),
        )

    def put(self, job: QueueEntry) -> None:
        """Add a job, or replace it. Raises ValueError if its cost is not above 0 and finite."""
        if not 0 < job.cost_s < inf:
            raise ValueError(f"job {job.job_id} has a cost of {job.cost_s} GPU-seconds; it must be finite and above 0")
        old = self._entries.get(job.job_id)
        if old is not None and old.job_id in self._current_tiers and _same_place(old, job):
            self._shares[self._current_tiers[job.job_id]].swap(old, job)
            self._entries[job.job_id] = job
            return
        self.remove(job.job_id)
        self._entries[job.job_id] = job
        self._jobs_of_tenant[job.tenant] += 1
        latest = max(job.since, self._now)
        if job.not_before <= latest:
            self._join(job, latest)
        else:
            insort(self._pauses, (job.not_before, job.job_id))

    def remove(self, job_id: str) -> None:
        """Take a job out without serving it; no error if it does not wait."""
        job = self._entries.get(job_id)
        if job is None:
            return
        if job_id in self._current_tiers:
            self._shares[self._current_tiers[job_id]].leave(job)
        self._drop(job)

    def take(self, now: float, suspects: int) -> tuple[QueueEntry, Charge] | None:
        """Remove the job that is next and book its cost on its tenant. O(tenants).

        Args:
            now: monotonic seconds, never less than before.
            suspects: how many suspects may be served; at 0 and below they are passed over.
        """
        self._advance(now)
        for tier, share in self._shares.items():
            job = share.serve(lambda job: self._credit(job, now), suspects > 0)
            if job is not None:
                self._drop(job)
                return job, Charge(job.tenant, tier, job.cost_s)
        return None

    def head(self, now: float) -> QueueEntry | None:
        """The job that `take` would give, suspects too; it stays. Arguments as of `take`."""
        self._advance(now)
        for share in self._shares.values():
            if (job := share.head(lambda job: self._credit(job, now))) is not None:
                return job
        return None

    def settle(self, charge: Charge, used_s: float) -> None:
        """Correct a booking by the GPU-seconds measured; 0 undoes it. Raises ValueError the second time."""
        self._shares[charge.tier].settle(charge, used_s)

    def order(self, now: float) -> list[QueueEntry]:
        """All jobs as `take` would give them, suspects too; then those in a pause, as the pauses end."""
        paused = [job_id for _, job_id in self._pauses[_count_due(self._pauses, now) :]]
        backlogs: dict[Tier, dict[str, list[QueueEntry]]] = {tier: defaultdict(list) for tier in TIERS}
        for job in (self._entries[job_id] for job_id in self._entries.keys() - set(paused)):
            backlogs[self._tier_at(job, now)][job.tenant].append(job)
        # Serving a job changes no tag but its tenant's, so taking the best head again and again is a
        # merge.
        served = [merge(*(self._tags(tier, jobs, now) for jobs in backlogs[tier].values())) for tier in TIERS]
        return [job for tier in served for _, (_, _, job) in tier] + [self._entries[job_id] for job_id in paused]

    def _tags(self, tier: Tier, jobs: list[QueueEntry], now: float) -> Iterator[tuple[float, Item]]:
        """The tags of a tenant's jobs as they will be compared."""
        share = self._shares[tier]
        finish = share.start(jobs[0].tenant)
        for item in sorted(map(sort_item, jobs)):
            finish = share.finish(finish, item[2])
            yield finish - self._credit(item[2], now), item

    def count_available(self, now: float) -> Counter[Tier]:
        """How many jobs are available at `now`, by the tier they were submitted in."""
        return self._available + Counter(job.tier for job in self._due_jobs(self._pauses, now))

    def next_pause_end(self, now: float) -> float | None:
        """When the first of the pauses that last beyond `now` ends, monotonic seconds."""
        later = self._pauses[_count_due(self._pauses, now) :][:1]
        return later[0][0] if later else None

    def _advance(self, now: float) -> None:
        """Let jobs join whose pause has ended, and move up those that have waited long enough."""
        self._now = max(self._now, now)
        resumed = self._pop_due(self._pauses, now)
        promoted = self._pop_due(self._promotions, now)
        tiers_before = [self._current_tiers[job.job_id] for job in promoted]
        for job in resumed + promoted:
            self._join(job, now)
        # They leave last: a tenant that has had a job in a tier all the time keeps its tag there.
        for job, tier in zip(promoted, tiers_before, strict=True):
            self._shares[tier].leave(job)
            self._available[job.tier] -= 1

    def _pop_due(self, agenda: _Agenda, now: float) -> list[QueueEntry]:
        jobs = self._due_jobs(agenda, now)
        del agenda[: len(jobs)]
        return jobs

    def _due_jobs(self, agenda: _Agenda, now: float) -> list[QueueEntry]:
        return [self._entries[job_id] for _, job_id in agenda[: _count_due(agenda, now)]]

    def _join(self, job: QueueEntry, now: float) -> None:
        tier = self._tier_at(job, now)
        self._current_tiers[job.job_id] = tier
        self._available[job.tier] += 1
        self._shares[tier].join(job)
        if tier is not TIERS[0]:
            insort(self._promotions, (self._promotion_at(job, tier), job.job_id))

    def _drop(self, job: QueueEntry) -> None:
        """Forget a job that is in no share."""
        del self._entries[job.job_id]
        self._jobs_of_tenant[job.tenant] -= 1
        if not self._jobs_of_tenant[job.tenant]:
            del self._jobs_of_tenant[job.tenant]
        tier = self._current_tiers.pop(job.job_id, None)
        if tier is None:
            _discard(self._pauses, (job.not_before, job.job_id))
            return
        self._available[job.tier] -= 1
        if tier is not TIERS[0]:
            _discard(self._promotions, (self._promotion_at(job, tier), job.job_id))

    def _tier_at(self, job: QueueEntry, now: float) -> Tier:
        tier = job.tier
        while tier is not TIERS[0] and now >= self._promotion_at(job, tier):
            tier = TIERS[TIERS.index(tier) - 1]
        return tier

    def _promotion_at(self, job: QueueEntry, tier: Tier) -> float:
        """When the job goes from `tier` to the one above; from the highest: when it is overdue."""
        return job.since + self._span_s * (TIERS.index(job.tier) - TIERS.index(tier) + 1)

    def _credit(self, job: QueueEntry, now: float) -> float:
        """What is taken off the job's tag, GPU-seconds over weight; 0 until it is overdue."""
        return CREDIT_GROWTH * max(0.0, now - self._promotion_at(job, TIERS[0]))


def _same_place(old: QueueEntry, new: QueueEntry) -> bool:
    """Whether they differ in nothing that decides when and where a job joins."""
    return (old.tenant, old.tier, old.since, old.not_before) == (new.tenant, new.tier, new.since, new.not_before)


def _count_due(agenda: _Agenda, now: float) -> int:
    """How many entries of the agenda are due at `now`."""
    return bisect_right(agenda, now, key=itemgetter(0))


def _discard(agenda: _Agenda, entry: tuple[float, str]) -> None:
    del agenda[bisect_left(agenda, entry)]
