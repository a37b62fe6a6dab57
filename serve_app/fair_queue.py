"""The order of the jobs that wait for one stage: tiers, and in each tier fair shares between tenants. Pure.

Between tiers priority is strict, but a job goes one tier up for each `promote_after_s` that it has waited. Inside a
tier tenants share by self-clocked fair queueing (S. J. Golestani, "A self-clocked fair queueing scheme for broadband
applications", INFOCOM 1994). All tags are GPU-seconds divided by a weight:

- A tenant with backlog has a start tag s. It joins with s = max(V, s), so that an idle tenant saves nothing up.
  A tag that is behind V is forgotten, and all are when a tier has no job that waits or runs.
- Its oldest job has the finish tag F = s + cost / weight. The lowest F is served; then s = F of the tenant and V = F.
- `settle` moves s by (measured - booked) / weight.
- A job that has waited one more span in the highest tier is overdue: from then on its claim a = CLAIM_GROWTH x seconds
  is taken off its F when it is compared (and V = F - a). Its tenant borrows a and pays it back with its next jobs.

What follows (`tests/test_fair_queue.py` holds it). W: GPU-seconds served to a tenant in a tier, w: weight, c: its
costliest job. W / w grows as s does, so differences of s are differences of shares.

- Shares. A tenant that is passed over has F >= V, one that is served gets s <= V, hence V - c/w <= s <= V. Of two
  tenants that both have backlog and began level (together in an idle tier) the one behind is behind by at most
  one job of its own: W_i/w_i - W_j/w_j <= c_j/w_j. In any interval in which both have backlog the difference is at
  most c_i/w_i + c_j/w_j: at its start one of them may have waited for nearly a job.
- With `settle`: let O and U be the most by which the jobs of a tenant that run at the same time are over- and
  under-estimated, each in sum. Then V - (c+O)/w <= s <= V + U/w, and in any interval the difference is at most
  (c_i+O_i+U_i)/w_i + (c_j+O_j+U_j)/w_j, with jobs counted as booked until they are settled.
- With overdue jobs s <= V + a: to each bound the largest claim of the one ahead is added, and nothing else.
- No starvation. Let x be overdue from o, C the cost over weight of x and of the jobs before it of its tenant, A the
  tenant's loan at o. F >= V holds for all that wait, so a job that comes after o has F > V(o), while x has
  F <= V(o) + A + C. Claims grow alike, so nothing that comes after o + (A + C) / CLAIM_GROWTH goes before x, whatever
  its tier, tenant or weight: x is served at the latest when all that came before that moment has been.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from math import inf
from operator import itemgetter

from serve_app.jobs import TIERS, Tier

# An overdue tenant runs ahead of its share by this many GPU-seconds (over its weight) for each second it waits: small,
# so that a long queue of old jobs does not push aside the small ones of others.
CLAIM_GROWTH = 0.1


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits for the stage.

    order: FIFO inside its tenant, (created_at, id). since: its claim grows from here, monotonic seconds. not_before: a
    pause between attempts ends here, monotonic seconds; until then it is passed over and does not block its tenant.
    cost_s: estimated GPU-seconds that it still needs in this stage, > 0. suspect: replicas died with it.
    """

    job_id: str
    tenant: str
    tier: Tier
    order: tuple[float, str]
    since: float
    not_before: float
    cost_s: float
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Charge:
    """What `take` booked on a tenant, in GPU-seconds; to be settled once. tier: the one it was served in."""

    tenant: str
    tier: Tier
    cost_s: float


_Item = tuple[tuple[float, str], str, Waiting]  # sorts by age; no two are equal in the first two
_Agenda = list[tuple[float, str]]  # moments and jobs' ids, sorted


def _item(job: Waiting) -> _Item:
    return (job.order, job.job_id, job)


@dataclass(slots=True)
class _Flow:
    """The backlog of a tenant in a tier, each list oldest first. unsettled: charges not yet settled."""

    start: float
    unsettled: int = 0
    plain: list[_Item] = field(default_factory=list)
    suspects: list[_Item] = field(default_factory=list)

    @property
    def backlogged(self) -> bool:
        return bool(self.plain or self.suspects)

    def add(self, job: Waiting) -> None:
        insort(self.suspects if job.suspect else self.plain, _item(job))

    def discard(self, job: Waiting) -> None:
        items: list[_Item] = self.suspects if job.suspect else self.plain
        del items[bisect_left(items, (job.order, job.job_id), key=lambda item: item[:2])]

    def head(self, suspects: bool) -> _Item | None:
        """The oldest that may be served."""
        heads = self.plain[:1] + (self.suspects[:1] if suspects else [])
        return min(heads) if heads else None


class _Share:
    """One tier: its tenants and its clock, the V of the module's text."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self.clock = 0.0
        self.flows: dict[str, _Flow] = {}

    @property
    def backlogged(self) -> bool:
        return any(flow.backlogged for flow in self.flows.values())

    def start(self, tenant: str) -> float:
        """Start tag of the tenant's oldest job, or of one that came now."""
        flow = self.flows.get(tenant)
        if flow is None:
            return self.clock
        return flow.start if flow.backlogged else max(self.clock, flow.start)

    def finish(self, start: float, job: Waiting) -> float:
        return start + job.cost_s / self._weight(job.tenant)

    def join(self, job: Waiting) -> None:
        flow = self.flows.setdefault(job.tenant, _Flow(self.clock))
        flow.start = self.start(job.tenant)
        flow.add(job)

    def leave(self, job: Waiting) -> None:
        self.flows[job.tenant].discard(job)
        self._forget([job.tenant])

    def swap(self, old: Waiting, new: Waiting) -> None:
        """The tenant keeps its start tag, also if it has no other job."""
        self.flows[old.tenant].discard(old)
        self.flows[old.tenant].add(new)

    def serve(self, claim: Callable[[Waiting], float], suspects: bool) -> Waiting | None:
        """Take out the job with the lowest finish tag less its claim."""
        heads = [(flow, head) for flow in self.flows.values() if (head := flow.head(suspects))]
        if not heads:
            return None
        tag, (_, _, job) = min((self.finish(flow.start, head[2]) - claim(head[2]), head) for flow, head in heads)
        self.clock = max(self.clock, tag)
        self._book(job)
        if not suspects:
            self._hold_suspects()
        self._forget(list(self.flows))
        return job

    def _book(self, job: Waiting) -> None:
        flow = self.flows[job.tenant]
        flow.discard(job)
        flow.start = self.finish(flow.start, job)
        flow.unsettled += 1

    def _hold_suspects(self) -> None:
        """Whoever waits with nothing but suspects keeps its turn, and saves nothing up beyond it."""
        for flow in self.flows.values():
            if flow.suspects and not flow.plain:
                flow.start += max(0.0, self.clock - self.finish(flow.start, flow.suspects[0][2]))

    def settle(self, charge: Charge, used_s: float) -> None:
        flow = self.flows.get(charge.tenant)
        if flow is None or not flow.unsettled:
            raise ValueError(
                f"the tenant {charge.tenant!r} has no open charge in the tier {charge.tier}; settle each once"
            )
        flow.start += (used_s - charge.cost_s) / self._weight(charge.tenant)
        flow.unsettled -= 1
        self._forget(list(self.flows))
        if not any(other.backlogged or other.unsettled for other in self.flows.values()):
            self.flows.clear()
            self.clock = 0.0

    def _forget(self, tenants: Iterable[str]) -> None:
        """Drop the tags that are behind the clock: they say no more than a new one would."""
        for tenant in tenants:
            flow = self.flows[tenant]
            if not flow.backlogged and not flow.unsettled and flow.start <= self.clock:
                del self.flows[tenant]


class FairQueue:
    """The jobs that wait for one stage.

    Args:
        weight: a tenant's share, > 0.
        promote_after_s: a job that has waited this long goes with the tier above.
    """

    def __init__(self, weight: Callable[[str], float], promote_after_s: float) -> None:
        if promote_after_s <= 0:
            raise ValueError(f"promote_after_s is {promote_after_s}; it must be more than 0")
        self._span = promote_after_s
        self._now = -inf  # the latest moment told to take()
        self._shares = {tier: _Share(weight) for tier in TIERS}
        self._jobs: dict[str, Waiting] = {}
        self._tiers: dict[str, Tier] = {}  # of the jobs that joined a share; the others are in _paused
        self._paused: _Agenda = []
        self._rising: _Agenda = []
        self._joined: Counter[Tier] = Counter()
        self._tenants: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    def count(self, tenant: str) -> int:
        """Jobs of the tenant that wait, paused ones too."""
        return self._tenants[tenant]

    def put(self, job: Waiting) -> None:
        """Add a job; again under the same id replaces it. Raises ValueError if its cost is 0, less or infinite."""
        if not 0 < job.cost_s < inf:
            raise ValueError(f"job {job.job_id} has a cost of {job.cost_s} GPU-seconds; it must be finite and above 0")
        old = self._jobs.get(job.job_id)
        if old is not None and old.job_id in self._tiers and _same_turn(old, job):
            self._shares[self._tiers[job.job_id]].swap(old, job)
            self._jobs[job.job_id] = job
            return
        self.remove(job.job_id)
        self._jobs[job.job_id] = job
        self._tenants[job.tenant] += 1
        known_now = max(job.since, self._now)
        if job.not_before <= known_now:
            self._join(job, known_now)
        else:
            insort(self._paused, (job.not_before, job.job_id))

    def remove(self, job_id: str) -> None:
        """Take a job out without serving it; no error if it does not wait."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        if job_id in self._tiers:
            self._shares[self._tiers[job_id]].leave(job)
        self._drop(job)

    def take(self, now: float, suspects: int) -> tuple[Waiting, Charge] | None:
        """Remove the job that is next and book its cost on its tenant. O(tenants).

        Args:
            now: monotonic seconds, never less than before.
            suspects: how many suspects may be served; at 0 and below they are passed over.
        """
        self._advance(now)
        for tier, share in self._shares.items():
            job = share.serve(lambda job: self._claim(job, now), suspects > 0)
            if job is not None:
                self._drop(job)
                return job, Charge(job.tenant, tier, job.cost_s)
        return None

    def settle(self, charge: Charge, used_s: float) -> None:
        """Correct a booking by the GPU-seconds measured; 0 undoes it. Raises ValueError if it was settled before."""
        self._shares[charge.tier].settle(charge, used_s)

    def order(self, now: float) -> list[Waiting]:
        """All jobs as `take` would give them at `now`, suspects allowed; then the paused ones as their pauses end."""
        asleep = [job_id for _, job_id in self._paused[_due(self._paused, now) :]]
        awake = self._jobs.keys() - set(asleep)
        backlogs: dict[Tier, dict[str, list[Waiting]]] = {tier: defaultdict(list) for tier in TIERS}
        for job in (self._jobs[job_id] for job_id in awake):
            backlogs[self._tier_at(job, now)][job.tenant].append(job)
        # Serving a job changes no tag but its tenant's, so taking from the best head on and on is a merge.
        served = [merge(*(self._tags(tier, jobs, now) for jobs in backlogs[tier].values())) for tier in TIERS]
        return [job for tier in served for _, (_, _, job) in tier] + [self._jobs[job_id] for job_id in asleep]

    def _tags(self, tier: Tier, jobs: list[Waiting], now: float) -> Iterator[tuple[float, _Item]]:
        """The tags of a tenant's jobs as they will be compared."""
        share = self._shares[tier]
        finish = share.start(jobs[0].tenant)
        for item in sorted(map(_item, jobs)):
            finish = share.finish(finish, item[2])
            yield finish - self._claim(item[2], now), item

    def first_tier(self, now: float) -> Tier | None:
        """The highest tier that a job competes in at `now`; None if none is available."""
        tiers = {tier for tier, share in self._shares.items() if share.backlogged}
        for agenda in (self._paused, self._rising):
            tiers |= {self._tier_at(job, now) for job in self._due_jobs(agenda, now)}
        return min(tiers, key=TIERS.index, default=None)

    def waiting_tiers(self, now: float) -> Counter[Tier]:
        """How many jobs are available at `now`, by the tier they were submitted in."""
        return self._joined + Counter(job.tier for job in self._due_jobs(self._paused, now))

    def next_at(self, now: float) -> float | None:
        """When the first of the pauses that last beyond `now` ends, monotonic seconds."""
        later = self._paused[_due(self._paused, now) :][:1]
        return later[0][0] if later else None

    def _advance(self, now: float) -> None:
        """Let in those whose pause has ended, and lift those that have waited long enough."""
        self._now = max(self._now, now)
        woken = self._pop_due(self._paused, now)
        lifted = self._pop_due(self._rising, now)
        left = [self._tiers[job.job_id] for job in lifted]
        for job in woken + lifted:
            self._join(job, now)
        # Left only now: a tenant that always had a job in a tier keeps its tag there.
        for job, tier in zip(lifted, left, strict=True):
            self._shares[tier].leave(job)
            self._joined[job.tier] -= 1

    def _pop_due(self, agenda: _Agenda, now: float) -> list[Waiting]:
        jobs = self._due_jobs(agenda, now)
        del agenda[: len(jobs)]
        return jobs

    def _due_jobs(self, agenda: _Agenda, now: float) -> list[Waiting]:
        return [self._jobs[job_id] for _, job_id in agenda[: _due(agenda, now)]]

    def _join(self, job: Waiting, now: float) -> None:
        tier = self._tier_at(job, now)
        self._tiers[job.job_id] = tier
        self._joined[job.tier] += 1
        self._shares[tier].join(job)
        if tier is not TIERS[0]:
            insort(self._rising, (self._rises_at(job, tier), job.job_id))

    def _drop(self, job: Waiting) -> None:
        """Forget a job that is in no share."""
        del self._jobs[job.job_id]
        self._tenants[job.tenant] -= 1
        if not self._tenants[job.tenant]:
            del self._tenants[job.tenant]
        tier = self._tiers.pop(job.job_id, None)
        if tier is None:
            _discard(self._paused, (job.not_before, job.job_id))
            return
        self._joined[job.tier] -= 1
        if tier is not TIERS[0]:
            _discard(self._rising, (self._rises_at(job, tier), job.job_id))

    def _tier_at(self, job: Waiting, now: float) -> Tier:
        tier = job.tier
        while tier is not TIERS[0] and now >= self._rises_at(job, tier):
            tier = TIERS[TIERS.index(tier) - 1]
        return tier

    def _rises_at(self, job: Waiting, tier: Tier) -> float:
        """When the job goes from `tier` to the one above; from the highest: when it is overdue."""
        return job.since + self._span * (TIERS.index(job.tier) - TIERS.index(tier) + 1)

    def _claim(self, job: Waiting, now: float) -> float:
        """What is taken off the job's tag, GPU-seconds over weight; 0 until it is overdue."""
        return CLAIM_GROWTH * max(0.0, now - self._rises_at(job, TIERS[0]))


def _same_turn(old: Waiting, new: Waiting) -> bool:
    """Whether they differ in nothing that decides when and where a job joins."""
    return (old.tenant, old.tier, old.since, old.not_before) == (new.tenant, new.tier, new.since, new.not_before)


def _due(agenda: _Agenda, now: float) -> int:
    """How many entries of the agenda are due at `now`."""
    return bisect_right(agenda, now, key=itemgetter(0))


def _discard(agenda: _Agenda, entry: tuple[float, str]) -> None:
    del agenda[bisect_left(agenda, entry)]
