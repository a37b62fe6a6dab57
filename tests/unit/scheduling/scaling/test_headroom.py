"""Slots for urgent jobs that have not come yet."""

from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.messages import Stage
from serve_app.jobs import Tier
from serve_app.scheduling.scaling.headroom import FADING_S, Arrivals, UrgentLoad, slots_kept

TARGETS_S = {Tier.INTERACTIVE: 60.0, Tier.STANDARD: 600.0, Tier.BATCH: 3600.0}
SECONDS = {Stage.ENCODING: 0.1, Stage.SAMPLING: 360.0, Stage.DECODING: 2.0}
START_S = 240.0
HOUR_S = 3600.0


def came(tier: Tier, every_s: float, since: float = 0.0, until: float = 5 * FADING_S) -> Arrivals:
    arrivals = Arrivals(TARGETS_S)
    for k in range(int((until - since) / every_s)):
        arrivals.note(tier, SECONDS, since + k * every_s)
    return arrivals


def test_rate_and_load_of_jobs_that_come_regularly() -> None:
    load = came(Tier.INTERACTIVE, 100.0).urgent(Stage.SAMPLING, START_S, 5 * FADING_S)
    assert load.rate == pytest.approx(1 / 100, rel=0.05)
    assert load.erlangs == pytest.approx((360 - 60) / 100, rel=0.05)


def test_who_can_wait_for_a_start_is_not_urgent() -> None:
    standard, interactive = came(Tier.STANDARD, 100.0), came(Tier.INTERACTIVE, 100.0)
    now = 5 * FADING_S
    assert standard.urgent(Stage.SAMPLING, START_S, now) == UrgentLoad()
    assert standard.urgent(Stage.SAMPLING, 700.0, now).rate > 0
    assert interactive.urgent(Stage.SAMPLING, 30.0, now) == UrgentLoad()


def test_what_is_done_within_the_target_wait_holds_no_slot_that_another_would_miss() -> None:
    load = came(Tier.INTERACTIVE, 100.0).urgent(Stage.ENCODING, START_S, 5 * FADING_S)
    assert load.erlangs == 0.0 and slots_kept(load, 900.0) == 1


def test_one_job_keeps_nothing_and_what_is_kept_fades() -> None:
    arrivals = Arrivals(TARGETS_S)
    arrivals.note(Tier.INTERACTIVE, SECONDS, 0.0)
    assert slots_kept(arrivals.urgent(Stage.SAMPLING, START_S, 0.0), 900.0) == 0
    busy = came(Tier.INTERACTIVE, 100.0)
    kept = [slots_kept(busy.urgent(Stage.SAMPLING, START_S, 5 * FADING_S + hour * HOUR_S), 900.0) for hour in range(3)]
    assert kept[0] > kept[1] > kept[2] == 0


def test_a_clock_that_was_set_back_changes_nothing() -> None:
    arrivals = came(Tier.INTERACTIVE, 100.0)
    before = arrivals.urgent(Stage.SAMPLING, START_S, 5 * FADING_S)
    assert arrivals.urgent(Stage.SAMPLING, START_S, 0.0) == before


def test_what_was_kept_over_a_restart_goes_on() -> None:
    whole, before = came(Tier.INTERACTIVE, 100.0, until=2e4), came(Tier.INTERACTIVE, 100.0, until=1e4)
    after = came(Tier.INTERACTIVE, 100.0, since=1e4, until=2e4)
    after.restore(before.sums)
    wanted, found = (one.urgent(Stage.SAMPLING, START_S, 2e4) for one in (whole, after))
    assert (found.rate, found.erlangs) == pytest.approx((wanted.rate, wanted.erlangs))


def loss(slots: int, erlangs: float) -> float:
    """Erlang's formula as he wrote it."""
    return (erlangs**slots / factorial(slots)) / sum(erlangs**k / factorial(k) for k in range(slots + 1))


@given(st.floats(1e-5, 0.1), st.floats(0.0, 20.0), st.floats(0.0, 5000.0))
def test_the_next_slot_would_cost_more_than_it_saves(rate: float, erlangs: float, worth_s: float) -> None:
    kept = slots_kept(UrgentLoad(rate, erlangs), worth_s)
    value = rate * worth_s
    assert value * loss(kept, erlangs) <= 1.0 + 1e-9
    assert kept == 0 or value * loss(kept - 1, erlangs) >= 1.0 - 1e-9


@given(st.floats(1e-5, 0.1), st.floats(0.0, 20.0), st.floats(0.0, 5000.0))
def test_more_is_kept_for_more(rate: float, erlangs: float, worth_s: float) -> None:
    kept = slots_kept(UrgentLoad(rate, erlangs), worth_s)
    assert slots_kept(UrgentLoad(rate, erlangs + 1.0), worth_s) >= kept
    assert slots_kept(UrgentLoad(rate * 2, erlangs), worth_s) >= kept
    assert slots_kept(UrgentLoad(rate, erlangs), worth_s * 2) >= kept
