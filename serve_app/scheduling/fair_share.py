"""Fair shares between the tenants of one tier: self-clocked fair queueing. Pure.

S. J. Golestani, "A self-clocked fair queueing scheme for broadband applications", INFOCOM 1994. All tags are
GPU-seconds divided by a weight:

- A tenant with backlog has a start tag s. It joins with s = max(V, s), so that an idle tenant saves nothing up.
  A tag that is behind V is forgotten, and all are when a tier has no job that waits or runs.
- Its oldest job has the finish tag F = s + cost / weight. The lowest F is served; then s = F of the tenant and V = F.
- `settle` moves s by (measured - booked) / weight.
- A job that has waited one more span in the highest tier is overdue: from then on its claim a = CLAIM_GROWTH x seconds
  is taken off its F when it is compared (and V = F - a). Its tenant borrows a and pays it back with its next jobs.

What follows, and tests/unit/scheduling/test_fair_queue.py holds. W: GPU-seconds served to a tenant in a tier, w: its
weight, c: its costliest job. W / w grows as s does, so differences of s are differences of shares.

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

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serve_app.jobs import Tier


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


Item = tuple[tuple[float, str], str, Waiting]  # sorts by age; no two are equal in the first two


def sort_item(job: Waiting) -> Item:
    return (job.order, job.job_id, job)


@dataclass(slots=True)
class _Flow:
    """The backlog of a tenant in a tier, each list oldest first. unsettled: charges not yet settled."""

    start: float
    unsettled: int = 0
    plain: list[Item] = field(default_factory=list)
    suspects: list[Item] = field(default_factory=list)

    @property
    def backlogged(self) -> bool:
        return bool(self.plain or self.suspects)

    def add(self, job: Waiting) -> None:
        insort(self.suspects if job.suspect else self.plain, sort_item(job))

    def discard(self, job: Waiting) -> None:
        items: list[Item] = self.suspects if job.suspect else self.plain
        del items[bisect_left(items, (job.order, job.job_id), key=lambda item: item[:2])]

    def head(self, suspects: bool) -> Item | None:
        """The oldest that may be served."""
        heads = self.plain[:1] + (self.suspects[:1] if suspects else [])
        return min(heads) if heads else None


class Share:
    """One tier: its tenants and its clock, the V of the module's text."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self.clock = 0.0
        self.flows: dict[str, _Flow] = {}

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
