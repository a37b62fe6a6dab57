"""Fair shares between the tenants of one tier: self-clocked fair queueing. Pure.

S. J. Golestani, "A self-clocked fair queueing scheme for broadband applications", INFOCOM 1994. All
tags are GPU-seconds divided by a weight:

- A tenant with backlog has a start tag s. It joins with s = max(V, s), so that an idle tenant saves
  nothing up. A tag that is behind V is forgotten, and all are when a tier has no job that waits or
  runs.
- Its oldest job has the finish tag F = s + cost / weight. The lowest F is served; then s = F of the
  tenant and V = F.
- `settle` moves s by (measured - booked) / weight.
- A job that has waited one more span in the highest tier is overdue: from then on its credit
  a = CREDIT_GROWTH x seconds is taken off its F when it is compared (and V = F - a). Its tenant
  borrows a and pays it back with its next jobs.

What follows, and tests/unit/scheduling/test_fair_queue.py holds. W: GPU-seconds served to a tenant
in a tier, w: its weight, c: its costliest job. W / w grows as s does, so differences of s are
differences of shares.

- Shares. A tenant that is passed over has F >= V, one that is served gets s <= V, hence
  V - c/w <= s <= V. Of two tenants that both have backlog and began level (together in an idle
  tier) the one behind is behind by at most one job of its own: W_i/w_i - W_j/w_j <= c_j/w_j. In any
  interval in which both have backlog the difference is at most c_i/w_i + c_j/w_j: at its start one
  of them may have waited for nearly a job.
- With `settle`: let O and U be the most by which the jobs of a tenant that run at the same time are
  over- and under-estimated, each in sum. Then V - (c+O)/w <= s <= V + U/w, and in any interval the
  difference is at most (c_i+O_i+U_i)/w_i + (c_j+O_j+U_j)/w_j, with jobs counted as booked until
  they are settled.
- With overdue jobs s <= V + a: to each bound the largest credit of the one ahead is added, and
  nothing else.
- No starvation. Let x be overdue from o, C the cost over weight of x and of the jobs before it of
  its tenant, A the tenant's loan at o. F >= V holds for all that wait, so a job that comes after o
  has F > V(o), while x has F <= V(o) + A + C. Credits grow alike, so nothing that comes after
  o + (A + C) / CREDIT_GROWTH goes before x, whatever its tier, tenant or weight: x is served at the
  latest when all that came before that moment has been.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serve_app.jobs import Tier


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A job that waits for the stage. All moments are monotonic seconds."""

    job_id: str
    tenant: str
    tier: Tier
    order: tuple[float, str]  # first in, first out inside its tenant: (created_at, id)
    since: float  # it waits from here on: after so many spans it rises a tier, then its credit grows
    not_before: float  # the pause between attempts ends here; until then it is passed over and blocks nobody
    cost_s: float  # estimated GPU-seconds that it still needs in this stage, > 0
    suspect: bool = False  # replicas died with it


@dataclass(frozen=True, slots=True)
class Charge:
    """What `take` booked on a tenant; to be settled once."""

    tenant: str
    tier: Tier  # the one that the job was served in
    cost_s: float  # GPU-seconds


Item = tuple[tuple[float, str], str, QueueEntry]  # sorts by age; no two are equal in the first two


def sort_item(entry: QueueEntry) -> Item:
    return (entry.order, entry.job_id, entry)


@dataclass(slots=True)
class _Flow:
    """The backlog of one tenant in one tier."""

    start: float  # the start tag s of the module's text
    unsettled: int = 0  # charges that are not settled yet
    plain: list[Item] = field(default_factory=list)  # oldest first
    suspects: list[Item] = field(default_factory=list)  # oldest first

    @property
    def backlogged(self) -> bool:
        return bool(self.plain or self.suspects)

    def add(self, entry: QueueEntry) -> None:
        insort(self.suspects if entry.suspect else self.plain, sort_item(entry))

    def discard(self, entry: QueueEntry) -> None:
        items: list[Item] = self.suspects if entry.suspect else self.plain
        del items[bisect_left(items, (entry.order, entry.job_id), key=lambda item: item[:2])]

    def head(self, with_suspects: bool) -> Item | None:
        """The oldest job that may be served."""
        heads = self.plain[:1] + (self.suspects[:1] if with_suspects else [])
        return min(heads) if heads else None

    def copy(self) -> "_Flow":
        return _Flow(self.start, self.unsettled, self.plain.copy(), self.suspects.copy())


class TierShares:
    """The tenants of one tier, and the tier's clock: the V of the module's text."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self.clock = 0.0
        self.flows: dict[str, _Flow] = {}

    def copy(self) -> "TierShares":
        """One that goes on from here by itself."""
        made = TierShares(self._weight)
        made.clock = self.clock
        made.flows = {tenant: flow.copy() for tenant, flow in self.flows.items()}
        return made

    @property
    def backlog(self) -> int:
        """Jobs that wait, of all tenants."""
        return sum(len(flow.plain) + len(flow.suspects) for flow in self.flows.values())

    @property
    def unsettled(self) -> int:
        """Charges that are not settled yet, of all tenants."""
        return sum(flow.unsettled for flow in self.flows.values())

    def start(self, tenant: str) -> float:
        """Start tag of the tenant's oldest job, or of one that came now."""
        flow = self.flows.get(tenant)
        if flow is None:
            return self.clock
        return flow.start if flow.backlogged else max(self.clock, flow.start)

    def finish(self, start: float, entry: QueueEntry) -> float:
        return start + entry.cost_s / self._weight(entry.tenant)

    def join(self, entry: QueueEntry) -> None:
        flow = self.flows.setdefault(entry.tenant, _Flow(self.clock))
        flow.start = self.start(entry.tenant)
        flow.add(entry)

    def leave(self, entry: QueueEntry) -> None:
        self.flows[entry.tenant].discard(entry)
        self._forget_old_tags([entry.tenant])

    def swap(self, old: QueueEntry, new: QueueEntry) -> None:
        """Put `new` in the place of `old`. The tenant keeps its start tag, whatever else it has."""
        self.flows[old.tenant].discard(old)
        self.flows[old.tenant].add(new)

    def head(self, credit: Callable[[QueueEntry], float]) -> QueueEntry | None:
        """The job that `serve` would take out, suspects too."""
        found = self._next(credit, with_suspects=True)
        return found and found[1]

    def _next(self, credit: Callable[[QueueEntry], float], with_suspects: bool) -> tuple[float, QueueEntry] | None:
        """The job that is next, with what its finish tag is compared as."""
        heads = [(flow, head) for flow in self.flows.values() if (head := flow.head(with_suspects))]
        if not heads:
            return None
        tag, (_, _, entry) = min((self.finish(flow.start, head[2]) - credit(head[2]), head) for flow, head in heads)
        return tag, entry

    def serve(self, credit: Callable[[QueueEntry], float], with_suspects: bool) -> QueueEntry | None:
        """Take out the job with the lowest finish tag less its credit, and book its cost.

        Args:
            credit: what is taken off the tag of an overdue job.
            with_suspects: whether a suspect may be served.
        """
        found = self._next(credit, with_suspects)
        if found is None:
            return None
        tag, entry = found
        # A credit may put the tag behind the clock. The clock never goes back: a tenant that joins
        # would begin ahead of those that have waited.
        self.clock = max(self.clock, tag)
        flow = self.flows[entry.tenant]
        flow.discard(entry)
        # The whole cost, whatever the credit was: the tenant pays back with its next jobs.
        flow.start = self.finish(flow.start, entry)
        flow.unsettled += 1
        if not with_suspects:
            self._hold_passed_over()
        self._forget_old_tags(list(self.flows))
        return entry

    def _hold_passed_over(self) -> None:
        """A tenant that waits with suspects alone keeps its turn, and saves nothing up beyond it.

        It was passed over while the clock went on. Its finish tag goes with the clock: it is the
        next one when suspects may be served again, but not also with the jobs that it would have
        had served meanwhile.
        """
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
        self._forget_old_tags(list(self.flows))
        if not any(other.backlogged or other.unsettled for other in self.flows.values()):
            self.flows.clear()
            self.clock = 0.0

    def _forget_old_tags(self, tenants: Iterable[str]) -> None:
        """Forget tags that are behind the clock: a new one would say the same."""
        for tenant in tenants:
            flow = self.flows[tenant]
            if not flow.backlogged and not flow.unsettled and flow.start <= self.clock:
                del self.flows[tenant]
