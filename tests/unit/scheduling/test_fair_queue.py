"""The fair queue: shares, order, no starvation; the bounds are those that the text of its module proves."""

import pickle
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, count
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.jobs import TIERS, Tier
from serve_app.scheduling.fair_queue import CREDIT_GROWTH, FairQueue
from serve_app.scheduling.fair_share import Charge, QueueEntry
from tests.support.examples import examples

SPAN = 16.0
# Powers of two, so that tags add up exactly and ties are real ones.
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5, "e": 8.0}
TENANTS = tuple(WEIGHTS)
untimed = settings(deadline=None)


def first_tier(waiting: FairQueue, now: float) -> Tier | None:
    """The highest tier that a job competes in at `now`; None if none is available."""
    taken = waiting.copy().take(now, 1)
    return None if taken is None else taken[1].tier


def weight(tenant: str) -> float:
    return WEIGHTS.get(tenant, 1.0)


def queue(*jobs: QueueEntry) -> FairQueue:
    built = FairQueue(weight, SPAN)
    for job in jobs:
        built.put(job)
    return built


def job(name: str, tenant: str = "a", cost: float = 1.0, tier: Tier = Tier.STANDARD, **more: Any) -> QueueEntry:
    """Waits from the moment 0; its age is its number, as in `x12`."""
    plain = QueueEntry(name, tenant, tier, (float(name[1:]), name), since=0.0, not_before=0.0, cost_s=cost)
    return replace(plain, **more)


def drain(waiting: FairQueue, now: float = 0.0, suspects: int = 1) -> Iterator[QueueEntry]:
    while taken := waiting.take(now, suspects):
        yield taken[0]


def names(jobs: Iterator[QueueEntry]) -> list[str]:
    return [one.job_id for one in jobs]


class Ledger:
    """GPU-seconds served over weight, and for each pair of tenants how they moved apart while both had backlog."""

    def __init__(self) -> None:
        self.served: dict[str, float] = defaultdict(float)
        self.waiting: Counter[str] = Counter()
        self.costliest: dict[str, float] = defaultdict(float)
        self.slack: dict[str, float] = defaultdict(float)
        self._seen: dict[tuple[str, str], list[float]] = {}

    def add(self, one: QueueEntry) -> None:
        self.waiting[one.tenant] += 1
        self.costliest[one.tenant] = max(self.costliest[one.tenant], one.cost_s)

    def bound(self, tenant: str) -> float:
        return self.costliest[tenant] / weight(tenant) + self.slack[tenant]

    def lead(self, first: str, second: str) -> float:
        return self.served[first] / weight(first) - self.served[second] / weight(second)

    def check_pairs(self) -> None:
        """Over any interval: the difference since any earlier moment of the same joint backlog."""
        for pair in combinations(TENANTS, 2):
            leads = self._seen.setdefault(pair, [])
            leads.append(self.lead(*pair))
            assert max(leads) - min(leads) <= sum(map(self.bound, pair)) + 1e-9
            if not all(self.waiting[tenant] for tenant in pair):
                leads.clear()


jobs_of_tenants = st.tuples(st.sampled_from(TENANTS), st.integers(1, 64).map(float))
arrivals = st.lists(st.one_of(st.none(), jobs_of_tenants), max_size=150)


@untimed
@given(st.dictionaries(st.sampled_from(TENANTS), st.lists(st.integers(1, 64).map(float), min_size=1), min_size=2))
def test_of_two_that_began_level_the_one_behind_is_behind_by_at_most_one_job(backlogs: dict[str, list[float]]) -> None:
    ledger, waiting = Ledger(), queue()
    for number, (tenant, cost) in enumerate((t, c) for t, costs in backlogs.items() for c in costs):
        waiting.put(job(f"x{number}", tenant, cost))
        ledger.add(job(f"x{number}", tenant, cost))
    together = set(backlogs)
    for one in drain(waiting):
        ledger.served[one.tenant] += one.cost_s
        for ahead, behind in [(a, b) for a in together for b in together]:
            assert ledger.lead(ahead, behind) <= ledger.bound(behind)
        together = {tenant for tenant in together if waiting.count(tenant)}
    assert ledger.served == {tenant: sum(costs) for tenant, costs in backlogs.items()}


@untimed
@given(arrivals)
def test_in_any_interval_two_with_backlog_differ_by_at_most_a_job_of_each(
    steps: list[tuple[str, float] | None],
) -> None:
    ledger, waiting = Ledger(), queue()
    for number, step in enumerate([*steps, *[None] * len(steps)]):
        if step is not None:
            waiting.put(job(f"x{number}", *step))
            ledger.add(job(f"x{number}", *step))
        elif taken := waiting.take(0.0, 0):
            ledger.served[taken[0].tenant] += taken[0].cost_s
            ledger.waiting[taken[0].tenant] -= 1
            ledger.check_pairs()
    assert not len(waiting)


factors = st.sampled_from([0.0, 0.125, 0.5, 1.0, 2.0, 8.0])
batches = st.tuples(st.sampled_from(TENANTS), st.integers(1, 64).map(float), st.integers(1, 10))
events = st.lists(st.one_of(st.none(), batches, st.integers(0, 3)), max_size=60)


@untimed
@given(events, st.fixed_dictionaries(dict.fromkeys(TENANTS, factors)))
def test_what_was_measured_stays_in_proportion_though_estimates_are_wrong(
    steps: list[tuple[str, float, int] | int | None], factor: dict[str, float]
) -> None:
    """A tuple puts jobs, a number settles one of those that run, None takes one; up to four run at once."""
    ledger, waiting = Ledger(), queue()
    running: list[tuple[QueueEntry, Charge]] = []
    ages = map("x{}".format, count())
    rest = [0, None] * sum(step[2] for step in steps if isinstance(step, tuple))
    for step in [*steps, *rest]:
        if isinstance(step, tuple):
            for new in [job(next(ages), *step[:2]) for _ in range(step[2])]:
                waiting.put(new)
                ledger.add(new)
        elif step is not None and step < len(running):
            one, charge = running.pop(step)
            waiting.settle(charge, one.cost_s * factor[one.tenant])
            ledger.served[one.tenant] += one.cost_s * (factor[one.tenant] - 1)
        elif step is None and len(running) < 4 and (taken := waiting.take(0.0, 0)):
            running.append(taken)
            tenant = taken[0].tenant
            ledger.served[tenant] += taken[0].cost_s
            ledger.waiting[tenant] -= 1
            wrong = sum(one.cost_s for one, _ in running if one.tenant == tenant) * abs(factor[tenant] - 1)
            ledger.slack[tenant] = max(ledger.slack[tenant], wrong / weight(tenant))
        ledger.check_pairs()
    assert not len(waiting)


@untimed
@given(st.lists(st.one_of(st.integers(0, 60), jobs_of_tenants), max_size=120))
def test_overdue_jobs_run_ahead_by_their_credit_and_no_further(steps: list[tuple[str, float] | int]) -> None:
    """A number takes a job after that many seconds."""
    ledger, waiting, now = Ledger(), queue(), 0.0
    for number, step in enumerate([*steps, *[1] * len(steps)]):
        if isinstance(step, tuple):
            new = job(f"x{number}", *step, tier=Tier.INTERACTIVE, since=now)
            waiting.put(new)
            ledger.add(new)
            continue
        now += step
        if taken := waiting.take(now, 0):
            one = taken[0]
            credit = CREDIT_GROWTH * max(0.0, now - one.since - SPAN)
            ledger.slack[one.tenant] = max(ledger.slack[one.tenant], credit)
            ledger.served[one.tenant] += one.cost_s
            ledger.waiting[one.tenant] -= 1
            ledger.check_pairs()


def overdue_at(one: QueueEntry) -> float:
    return one.since + SPAN * (1 + TIERS.index(one.tier))


newcomers = st.tuples(st.integers(0, 30), st.floats(0.01, 40), st.sampled_from(TIERS))


@untimed
@given(st.lists(st.one_of(st.integers(1, 40), newcomers), max_size=150))
def test_nothing_that_comes_after_a_computed_moment_goes_before_a_job(
    steps: list[tuple[int, float, Tier] | int],
) -> None:
    """After o + (A + C) / CREDIT_GROWTH, see the module's text. A number takes a job after that many seconds."""
    waiting, now = queue(), 0.0
    arrived: dict[str, QueueEntry] = {}
    served: list[tuple[float, QueueEntry]] = []
    for number, step in enumerate([*steps, *[1] * len(steps)]):
        if isinstance(step, tuple):
            tenant, cost, tier = step
            new = job(f"x{number}", (*TENANTS, *map(str, range(26)))[tenant], cost, tier, since=now, not_before=now)
            waiting.put(new)
            arrived[new.job_id] = new
            continue
        now += step
        if taken := waiting.take(now, 0):
            served.append((now, taken[0]))
    assert len(served) == len(arrived)
    for place, (_, x) in enumerate(served):
        before = served[:place]
        own = [(at, one) for at, one in before if one.tenant == x.tenant]
        loan = CREDIT_GROWTH * max([0.0, *(at - overdue_at(one) for at, one in own)])
        ahead = sum(one.cost_s for at, one in own if at >= x.since) + x.cost_s
        last = overdue_at(x) + (loan + ahead / weight(x.tenant)) / CREDIT_GROWTH
        assert all(one.since < last for _, one in before)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize("tenants", ["endless", "one each", "one"])
def test_a_job_is_served_under_endless_interactive_jobs(tier: Tier, others: int, tenants: str) -> None:
    """One job is served a second, `others` come a second, cheap ones of heavy tenants: the queue only grows."""
    victim = job("x0", "victim", 8.0, tier)
    waiting = FairQueue(lambda tenant: 1.0 if tenant == "victim" else 1000.0, SPAN)
    waiting.put(victim)
    last = overdue_at(victim) + victim.cost_s / CREDIT_GROWTH
    for now in range(1 + others * int(last + 1) + 1):
        for k in range(others):
            tenant = {"endless": f"{now}/{k}", "one each": f"{k}", "one": "0"}[tenants]
            name = f"y{now * others + k}"
            waiting.put(job(name, tenant, 0.01, Tier.INTERACTIVE, since=float(now), not_before=float(now)))
        taken = waiting.take(float(now), 0)
        assert taken is not None
        if taken[0] is victim:
            return
    pytest.fail("more jobs went before it than came before the moment from which none can")


any_jobs = st.tuples(st.sampled_from(TENANTS), st.floats(0.1, 50), st.sampled_from(TIERS))


@untimed
@given(st.lists(st.tuples(any_jobs, st.floats(0, 15.9))))
def test_while_nobody_has_waited_long_tiers_are_served_strictly(
    jobs: list[tuple[tuple[str, float, Tier], float]],
) -> None:
    waiting = queue(*(job(f"x{n}", *spec, since=since) for n, (spec, since) in enumerate(jobs)))
    served = [one.tier for one in drain(waiting, now=15.95)]
    assert served == sorted(served, key=TIERS.index)
    assert len(served) == len(jobs)


def test_a_job_goes_one_tier_up_for_each_span_and_is_charged_there() -> None:
    for spans, tier in [(0.99, Tier.BATCH), (1, Tier.STANDARD), (1.99, Tier.STANDARD), (2, Tier.INTERACTIVE)]:
        waiting = queue(job("x1", tier=Tier.BATCH))
        assert first_tier(waiting, spans * SPAN) is tier
        assert waiting.count_available(spans * SPAN) == {Tier.BATCH: 1}
        assert waiting.take(spans * SPAN, 0) == (job("x1", tier=Tier.BATCH), Charge("a", tier, 1.0))


def test_a_lifted_job_is_one_of_its_tenants_in_the_upper_tier() -> None:
    old, new = job("x1", tier=Tier.BATCH), job("x2", since=SPAN)
    assert names(drain(queue(new, old), SPAN)) == ["x1", "x2"]
    assert names(drain(queue(new, old), SPAN - 1)) == ["x2", "x1"]


@untimed
@given(st.lists(jobs_of_tenants), st.randoms(use_true_random=False))
def test_a_tenant_is_served_in_the_order_of_creation(jobs: list[tuple[str, float]], random: Any) -> None:
    waiting = [job(f"x{n}", *spec) for n, spec in enumerate(jobs)]
    random.shuffle(waiting)
    served = list(drain(queue(*waiting)))
    for tenant in TENANTS:
        ages = [one.order for one in served if one.tenant == tenant]
        assert ages == sorted(ages)


def test_a_parked_job_goes_before_the_later_ones_of_its_tenant() -> None:
    waiting = queue(job("x1"), job("x2"), job("x3"))
    first, charge = waiting.take(0.0, 0) or pytest.fail("nothing waits")
    waiting.settle(charge, 0.5)
    waiting.put(job("x1", cost=0.5, since=5.0, not_before=5.0))
    assert names(drain(waiting, 5.0)) == ["x1", "x2", "x3"]


def test_shares_follow_the_weights() -> None:
    waiting = queue(*(job(f"x{n}", "acd"[n % 3], 2.0) for n in range(300)))
    served = Counter(one.tenant for _, one in zip(range(70), drain(waiting), strict=False))
    assert served == {"a": 20, "c": 40, "d": 10}


def settled(waiting: FairQueue, factor: dict[str, float], takes: int) -> Counter[str]:
    """Measured GPU-seconds by tenant, where each job is settled before the next is taken."""
    measured: Counter[str] = Counter()
    for _ in range(takes):
        one, charge = waiting.take(0.0, 0) or pytest.fail("nothing waits")
        waiting.settle(charge, one.cost_s * factor[one.tenant])
        measured[one.tenant] += int(one.cost_s * factor[one.tenant])
    return measured


def test_shares_are_those_of_the_measured_seconds() -> None:
    waiting = queue(*(job(f"x{n}", "ab"[n % 2], 4.0) for n in range(200)))
    assert settled(waiting, {"a": 2.0, "b": 0.5}, 100) == {"a": 20 * 8, "b": 80 * 2}


def test_a_tenant_that_went_idle_still_owes_what_it_overran_while_others_wait() -> None:
    waiting = queue(job("x0", "a"), *(job(f"y{n}", "b") for n in range(1, 100)))
    settled(waiting, {"a": 21.0}, 1)
    waiting.put(job("x100", "a"))
    assert [one.tenant for _, one in zip(range(23), drain(waiting), strict=False)].index("a") == 22


@pytest.mark.parametrize("earlier", [0, 1])
def test_an_idle_tenant_saves_nothing_up(earlier: int) -> None:
    waiting = queue(*(job(f"x{n}", "a") for n in range(200)), *(job(f"y{n}", "b") for n in range(earlier)))
    for _ in range(100 + earlier):
        waiting.take(0.0, 0)
    for n in range(200, 300):
        waiting.put(job(f"x{n}", "b"))
    served = Counter(one.tenant for _, one in zip(range(40), drain(waiting), strict=False))
    assert served == {"a": 20, "b": 20}


def test_a_tenant_that_only_waits_for_a_pause_saves_nothing_up() -> None:
    waiting = queue(*(job(f"x{n}", "a") for n in range(200)))
    for n in range(200, 300):
        waiting.put(job(f"x{n}", "b", not_before=5.0))
    assert {one.tenant for _, one in zip(range(100), drain(waiting, 4.0), strict=False)} == {"a"}
    served = Counter(one.tenant for _, one in zip(range(40), drain(waiting, 5.0), strict=False))
    assert served == {"a": 20, "b": 20}


def test_an_undone_claim_costs_its_tenant_nothing() -> None:
    waiting = queue(*(job(f"x{n}", "ab"[n % 2], 10.0) for n in range(20)))
    for _ in range(3):
        _, charge = waiting.take(0.0, 0) or pytest.fail("nothing waits")
        waiting.settle(charge, 0.0)
    assert Counter(one.tenant for _, one in zip(range(6), drain(waiting), strict=False)) == {"a": 3, "b": 3}


def test_paused_jobs_are_passed_over_and_block_nobody() -> None:
    waiting = queue(job("x1", not_before=8.0), job("x2"), job("x3", not_before=4.0))
    assert waiting.next_pause_end(0.0) == 4.0
    assert waiting.next_pause_end(4.0) == 8.0
    assert waiting.next_pause_end(8.0) is None
    assert waiting.count_available(4.0) == {Tier.STANDARD: 2}
    assert [one.job_id for one in waiting.order(0.0)] == ["x2", "x3", "x1"]
    assert [one.job_id for one in waiting.order(8.0)] == ["x1", "x2", "x3"]
    assert names(drain(waiting)) == ["x2"]
    assert first_tier(waiting, 3.0) is None
    assert names(drain(waiting, 8.0)) == ["x1", "x3"]
    assert waiting.next_pause_end(0.0) is None


@pytest.mark.parametrize("suspects", [0, -1])
def test_suspects_are_passed_over_unless_one_is_allowed(suspects: int) -> None:
    waiting = queue(job("x1", suspect=True), job("x2"), job("x3", "b", suspect=True))
    assert names(drain(waiting, suspects=suspects)) == ["x2"]
    assert names(drain(waiting, suspects=1)) == ["x3", "x1"]


def test_a_tenant_with_nothing_but_suspects_keeps_its_turn_and_saves_nothing_up() -> None:
    waiting = queue(*(job(f"x{n}", "a") for n in range(300)), *(job(f"y{n}", "b", suspect=True) for n in range(100)))
    for _ in range(100):
        waiting.take(0.0, 0)
    served = [one.tenant for _, one in zip(range(40), drain(waiting), strict=False)]
    assert served[0] == "b"
    assert Counter(served) == {"a": 19, "b": 21}


def test_putting_a_job_again_does_not_cost_its_tenant_the_turn() -> None:
    waiting = queue(job("x1", "b", 10.0), *(job(f"y{n}", "a") for n in range(100)))
    ahead = 0
    while (taken := waiting.take(0.0, 0)) and taken[0].job_id != "x1":
        waiting.put(job("x1", "b", 10.0 + ahead % 2))
        ahead += 1
    assert ahead <= 11


def test_a_job_put_again_is_replaced() -> None:
    waiting = queue(job("x1"), job("x2"))
    waiting.take(0.0, 0)
    waiting.put(job("x2", cost=5.0))
    waiting.put(job("x2", "b", cost=6.0, tier=Tier.BATCH))
    assert (len(waiting), waiting.count("a"), waiting.count("b")) == (1, 0, 1)
    assert waiting.take(0.0, 0) == (job("x2", "b", 6.0, Tier.BATCH), Charge("b", Tier.BATCH, 6.0))


def test_tenants_that_are_gone_are_forgotten() -> None:
    """Each tenant brings one job, half of them cost twice what was thought."""
    sizes = []
    waiting = queue(job("x0", "steady", 1e9))
    for n in range(1, 2001):
        waiting.put(job(f"x{n}", f"t{n}"))
        _, charge = waiting.take(0.0, 0) or pytest.fail("nothing waits")
        waiting.settle(charge, 1.0 + n % 2)
        sizes.append(len(pickle.dumps(waiting)))
    assert max(sizes[1000:]) <= max(sizes[:1000]) + 100


def test_an_idle_tier_forgets_all() -> None:
    waiting = queue(*(job(f"x{n}", f"t{n}") for n in range(100)))
    fresh = len(pickle.dumps(queue()))
    for _, charge in [taken for _ in range(100) if (taken := waiting.take(0.0, 0))]:
        waiting.settle(charge, 50.0)
    assert len(pickle.dumps(waiting)) < fresh + 100


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cost_must_be_finite_and_above_zero(cost: float) -> None:
    with pytest.raises(ValueError, match="x1 has a cost of"):
        queue(job("x1", cost=cost))


def test_a_charge_is_settled_once() -> None:
    waiting = queue(job("x1"))
    _, charge = waiting.take(0.0, 0) or pytest.fail("nothing waits")
    waiting.settle(charge, 1.0)
    with pytest.raises(ValueError, match="no open charge"):
        waiting.settle(charge, 1.0)


def test_the_span_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="promote_after_s"):
        FairQueue(weight, 0.0)


class Slow:
    """The same rules over plain lists: everything is looked up anew, nothing is forgotten."""

    def __init__(self) -> None:
        self.jobs: dict[str, QueueEntry] = {}
        self.tier: dict[str, Tier] = {}
        self.tags: dict[tuple[Tier, str], float] = {}
        self.clock = dict.fromkeys(TIERS, 0.0)
        self.open: Counter[tuple[Tier, str]] = Counter()
        self.now = -inf

    def tier_at(self, one: QueueEntry, now: float) -> Tier:
        return TIERS[max(0, TIERS.index(one.tier) - int((now - one.since) // SPAN))]

    def awake(self, now: float) -> list[QueueEntry]:
        return [one for one in self.jobs.values() if one.job_id in self.tier or one.not_before <= now]

    def backlog(self, tier: Tier, tenant: str) -> list[QueueEntry]:
        mine = [one for one in self.jobs.values() if one.tenant == tenant and self.tier.get(one.job_id) is tier]
        return sorted(mine, key=lambda one: one.order)

    def put(self, one: QueueEntry) -> None:
        old = self.jobs.get(one.job_id)
        if old is None or any(
            getattr(old, name) != getattr(one, name) for name in ("tenant", "tier", "since", "not_before")
        ):
            self.remove(one.job_id)
        self.jobs[one.job_id] = one
        if one.not_before <= max(one.since, self.now):
            self.join([one], max(one.since, self.now))

    def remove(self, job_id: str) -> None:
        self.jobs.pop(job_id, None)
        self.tier.pop(job_id, None)

    def join(self, jobs: list[QueueEntry], now: float) -> None:
        backlogged = {(tier, self.jobs[job_id].tenant) for job_id, tier in self.tier.items()}
        for one in jobs:
            tier = self.tier[one.job_id] = self.tier_at(one, now)
            if (tier, one.tenant) not in backlogged:
                self.tags[tier, one.tenant] = max(self.clock[tier], self.tags.get((tier, one.tenant), 0.0))

    def take(self, now: float, suspects: int) -> tuple[QueueEntry, Charge] | None:
        self.now = now
        self.join(self.awake(now), now)
        for tier in TIERS:
            heads = []
            for tenant in {one.tenant for one in self.jobs.values()}:
                allowed = [one for one in self.backlog(tier, tenant) if suspects > 0 or not one.suspect]
                for one in allowed[:1]:
                    finish = self.tags[tier, tenant] + one.cost_s / weight(tenant)
                    heads.append((finish - CREDIT_GROWTH * max(0.0, now - overdue_at(one)), one.order, finish, one))
            if heads:
                tag, _, finish, one = min(heads)
                self.clock[tier] = max(self.clock[tier], tag)
                self.tags[tier, one.tenant] = finish
                self.open[tier, one.tenant] += 1
                self.remove(one.job_id)
                if suspects <= 0:
                    self.hold(tier)
                return one, Charge(one.tenant, tier, one.cost_s)
        return None

    def hold(self, tier: Tier) -> None:
        for tenant in TENANTS:
            left = self.backlog(tier, tenant)
            if left and all(one.suspect for one in left):
                least = self.clock[tier] - left[0].cost_s / weight(tenant)
                self.tags[tier, tenant] = max(self.tags[tier, tenant], least)

    def settle(self, charge: Charge, used_s: float) -> None:
        key = (charge.tier, charge.tenant)
        self.tags[key] += (used_s - charge.cost_s) / weight(charge.tenant)
        self.open[key] -= 1
        busy = any(n and tier is charge.tier for (tier, _), n in self.open.items())
        if not busy and charge.tier not in self.tier.values():
            self.clock[charge.tier] = 0.0
            self.tags = {key: tag for key, tag in self.tags.items() if key[0] is not charge.tier}


class AgainstSlow(RuleBasedStateMachine):
    """Claims grow by tenths, so the slow model repeats the sums in the same order; all else is exact in binary."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.slow = queue(), Slow()
        self.now = 0.0
        self.charges: list[Charge] = []

    @rule(
        number=st.integers(0, 30),
        tenant=st.sampled_from(TENANTS),
        tier=st.sampled_from(TIERS),
        cost=st.integers(1, 16).map(float),
        waited=st.integers(0, 60),
        pause=st.sampled_from([0, 0, 0, 5, 20]),
        suspect=st.sampled_from([False, False, True]),
    )
    def put(self, number: int, tenant: str, tier: Tier, cost: float, waited: int, pause: int, suspect: bool) -> None:
        times = {"since": self.now - waited, "not_before": self.now + pause}
        self.put_both(job(f"x{number}", tenant, cost, tier, suspect=suspect, **times))

    @rule(pick=st.integers(0, 99), cost=st.integers(1, 16).map(float), suspect=st.booleans(), age=st.integers(0, 30))
    def change(self, pick: int, cost: float, suspect: bool, age: int) -> None:
        if self.slow.jobs:
            old = sorted(self.slow.jobs.values(), key=lambda one: one.job_id)[pick % len(self.slow.jobs)]
            self.put_both(replace(old, cost_s=cost, suspect=suspect, order=(float(age), old.job_id)))

    def put_both(self, one: QueueEntry) -> None:
        self.queue.put(one)
        self.slow.put(one)

    @rule(number=st.integers(0, 30))
    def remove(self, number: int) -> None:
        self.queue.remove(f"x{number}")
        self.slow.remove(f"x{number}")

    @rule(suspects=st.integers(-1, 2))
    def take(self, suspects: int) -> None:
        taken = self.queue.take(self.now, suspects)
        assert taken == self.slow.take(self.now, suspects)
        if taken:
            self.charges.append(taken[1])

    @rule(pick=st.integers(0, 99), factor=factors)
    def settle(self, pick: int, factor: float) -> None:
        if self.charges:
            charge = self.charges.pop(pick % len(self.charges))
            self.queue.settle(charge, charge.cost_s * factor)
            self.slow.settle(charge, charge.cost_s * factor)

    @rule(seconds=st.sampled_from([1, 3, 8, 16, 40]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def the_order_is_what_taking_gives(self) -> None:
        told = self.queue.order(self.now)
        asleep = [one for one in told if one not in self.slow.awake(self.now)]
        assert told == [*drain(self.queue.copy(), self.now), *asleep]
        assert [one.not_before for one in asleep] == sorted(one.not_before for one in asleep)

    @invariant()
    def the_counts_agree(self) -> None:
        awake = self.slow.awake(self.now)
        assert len(self.queue) == len(self.slow.jobs)
        assert {one.job_id for one in self.queue.order(self.now)} == set(self.slow.jobs)
        assert [n for n in range(31) if f"x{n}" in self.queue] == [n for n in range(31) if f"x{n}" in self.slow.jobs]
        assert {t: self.queue.count(t) for t in TENANTS} == {
            t: sum(one.tenant == t for one in self.slow.jobs.values()) for t in TENANTS
        }
        assert self.queue.count_available(self.now) == Counter(one.tier for one in awake)
        tiers = [self.slow.tier_at(one, self.now) for one in awake]
        assert first_tier(self.queue, self.now) is min(tiers, key=TIERS.index, default=None)

    @invariant()
    def the_next_pause_is_known(self) -> None:
        pauses = [one.not_before for one in self.slow.jobs.values() if one.not_before > self.now]
        assert self.queue.next_pause_end(self.now) == min(pauses, default=None)


TestAgainstSlow = AgainstSlow.TestCase
TestAgainstSlow.settings = settings(max_examples=examples(1.5), stateful_step_count=60)
