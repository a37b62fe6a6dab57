"""When fewer replicas are kept."""

from collections.abc import Sequence
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from serve_app.scheduling.scaling.capacity import StageNeed
from serve_app.scheduling.scaling.scaler import FEW_RETURNS, NEARLY, Hold, Returns, Scaler

START_S = 100.0


def test_hold_keeps_the_most_of_a_while() -> None:
    hold = Hold()
    needs = [(0, 5), (5, 2), (10, 3), (11, 1), (20, 1), (21, 0)]
    assert [hold.most(n, t, 10.0) for t, n in needs] == [5, 5, 5, 3, 3, 1]


def test_more_is_wanted_at_once_and_less_after_a_while() -> None:
    scaler = Scaler(downscale_delay_s=60.0)
    assert scaler.replicas(3, [], 0.0) == 3  # nothing is known yet
    scaler.take(StageNeed(8, 30.0), 3, 0.0)
    assert scaler.replicas(3, ["a", "b", "c"], 0.0) == 8
    names = list("abcdefgh")
    for now in (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0):
        scaler.take(StageNeed(1, 30.0), 8, now)
        assert scaler.replicas(8, names, now) == 8
    scaler.take(StageNeed(1, 30.0), 8, 61.0)
    assert scaler.replicas(8, names, 61.0) == 1


def test_by_default_a_replica_stays_as_long_as_a_start_takes() -> None:
    scaler = Scaler(None)
    scaler.take(StageNeed(1, 30.0), 1, 0.0)
    scaler.take(StageNeed(0, 30.0), 1, 9.0)
    assert scaler.replicas(1, ["a"], 9.0) == 1
    for now in (18.0, 27.0, 31.0):
        scaler.take(StageNeed(0, 30.0), 1, now)
    assert scaler.replicas(1, ["a"], 31.0) == 0


def test_time_without_answers_is_no_time_without_need() -> None:
    scaler = Scaler(60.0)
    scaler.take(StageNeed(4, 30.0), 4, 0.0)
    assert scaler.replicas(4, list("abcd"), 1000.0) == 4
    scaler.take(StageNeed(0, 30.0), 4, 1000.0)
    assert scaler.replicas(4, list("abcd"), 1000.0) == 4


def test_busy_replicas_that_would_go_are_spared_for_a_while() -> None:
    scaler = Scaler(0.0, busy_patience_s=100.0)
    scaler.take(StageNeed(1, 30.0, frozenset("b")), 4, 0.0)
    for now, target, kept in ((1.0, 4, 2), (2.0, 2, 2), (101.0, 2, 2), (102.0, 2, 1)):
        scaler.take(StageNeed(1, 30.0, frozenset("b")), target, now)
        assert scaler.replicas(target, list("abcd")[:target], now) == kept


def test_what_has_not_started_goes_first() -> None:
    scaler = Scaler(0.0)
    for now in (0.0, 1.0):
        scaler.take(StageNeed(1, 30.0, frozenset("ab")), 6, now)
    assert scaler.replicas(6, ["a", "b"], 1.0) == 2


def seen(away_s: Sequence[float]) -> Returns:
    """One replica that is needed now and then, for a second."""
    returns, now = Returns(), 0.0
    for gap_s in away_s:
        returns.note(1, now, START_S)
        returns.note(0, now + 1e-9, START_S)
        now += gap_s
    returns.note(1, now, START_S)
    return returns


def test_who_has_seen_little_stays_as_long_as_a_start_takes() -> None:
    assert Returns().stay_s(START_S) == START_S
    assert seen([500.0] * (FEW_RETURNS - 1)).stay_s(START_S) == START_S
    assert seen([500.0] * FEW_RETURNS).stay_s(START_S) == 0.0


def test_a_replica_stays_for_the_returns_that_are_worth_it() -> None:
    assert seen([20.0] * 10).stay_s(START_S) == 20.0
    # To stay 99 s for the last one, too, is less than to have stayed 20 s in vain and start again.
    assert seen([20.0] * 9 + [99.0]).stay_s(START_S) == 99.0
    assert seen([20.0] * 9 + [101.0]).stay_s(START_S) == 20.0
    # One of ten comes back soon: 20 s of nine are more than the start that they spare.
    assert seen([20.0] + [500.0] * 9).stay_s(START_S) == 0.0


def cost_s(stay_s: float, away_s: Sequence[float]) -> float:
    return sum(gap_s if gap_s <= stay_s else stay_s + START_S for gap_s in away_s)


@given(st.lists(st.integers(1, 300), min_size=FEW_RETURNS, max_size=30))
def test_no_other_while_would_have_cost_much_less(gaps: list[int]) -> None:
    away_s = [float(gap) for gap in gaps]
    stay_s = seen(away_s).stay_s(START_S)
    others = [cost_s(other, away_s) for other in [0.0, *away_s] if other <= START_S]
    assert 0.0 <= stay_s <= START_S
    assert cost_s(stay_s, away_s) <= NEARLY * min(others) + 1e-6


def test_each_replica_of_a_stage_is_away_for_itself() -> None:
    returns = Returns()
    for needed, now in ((5, 0.0), (3, 1.0), (2, 10.0), (4, 30.0)):
        returns.note(needed, now, START_S)
    assert sorted(returns._away_s) == [29.0, 30.0]
    returns.note(4, 200.0, START_S)
    assert sorted(returns._away_s) == [29.0, 30.0, inf]  # the fifth has been away for a start


def test_time_without_answers_is_no_absence() -> None:
    returns = Returns()
    for needed, now in ((1, 0.0), (0, 1.0)):
        returns.note(needed, now, START_S)
    returns.skip(51.0)
    returns.note(1, 61.0, START_S)
    assert list(returns._away_s) == [11.0]


def test_a_scaler_learns_to_let_go() -> None:
    scaler, now = Scaler(None), 0.0
    for _ in range(FEW_RETURNS):
        scaler.take(StageNeed(1, START_S), 1, now)
        for later in range(1, 40):
            scaler.take(StageNeed(0, START_S), 1, now + later * 5.0)
        now += 200.0
    scaler.take(StageNeed(1, START_S), 1, now)
    assert scaler.replicas(1, ["a"], now) == 1
    scaler.take(StageNeed(0, START_S), 1, now + 5.0)
    assert scaler.replicas(1, ["a"], now + 5.0) == 0
