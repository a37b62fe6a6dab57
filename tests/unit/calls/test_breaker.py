"""A breaker opens after failures in a row, lets one call try, and closes again."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.calls.breaker import BreakerRules, BreakerState, CircuitBreaker

RULES = BreakerRules(failures=3, first_pause_s=5, longest_pause_s=12)


def opened(at: float = 100.0) -> CircuitBreaker:
    breaker = CircuitBreaker(RULES)
    for _ in range(3):
        breaker.begin(at)
    assert [breaker.fail(at) for _ in range(3)] == [False, False, True]
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_starts_the_count_anew() -> None:
    breaker = CircuitBreaker(RULES)
    for _ in range(5):
        assert not breaker.fail(0) and not breaker.fail(0)
        breaker.succeed()
    assert breaker.state(0) is BreakerState.CLOSED and breaker.admits(0)
    assert opened().state(100) is BreakerState.OPEN


def test_one_call_at_a_time_tries_an_open_device() -> None:
    breaker = opened(100)
    assert not breaker.admits(104.9) and breaker.opens_in(101) == 4
    assert breaker.state(105) is BreakerState.HALF_OPEN and breaker.admits(105)
    breaker.begin(105)
    assert not breaker.admits(105)
    breaker.succeed()
    assert breaker.state(105) is BreakerState.CLOSED and breaker.failures == 0


def test_the_pause_doubles_up_to_its_bound_and_a_success_makes_it_short_again() -> None:
    breaker, now, pauses = opened(0), 0.0, []
    for _ in range(3):
        now += breaker.opens_in(now)
        breaker.begin(now)
        assert not breaker.fail(now)
        pauses.append(breaker.opens_in(now))
    assert pauses == [10, 12, 12]
    now += 12
    breaker.begin(now)
    breaker.succeed()
    for _ in range(3):
        breaker.fail(now)
    assert breaker.opens_in(now) == 5


def test_a_call_that_was_on_its_way_when_it_opened_does_not_lengthen_the_pause() -> None:
    breaker = opened(100)
    assert not breaker.fail(103)
    assert breaker.opens_in(103) == 2


def test_a_device_that_does_not_answer_opens_it_at_once() -> None:
    breaker = CircuitBreaker(RULES)
    breaker.begin(0)
    assert breaker.fail(0, at_once=True)
    assert breaker.state(0) is BreakerState.OPEN


def test_a_try_whose_client_goes_away_leaves_the_next_call_to_try() -> None:
    breaker = opened(0)
    breaker.begin(5)
    breaker.give_back()
    assert breaker.admits(5) and breaker.state(5) is BreakerState.HALF_OPEN


@given(st.lists(st.tuples(st.sampled_from(["call", "succeed", "fail", "late", "give_back"]), st.floats(0, 20))))
def test_it_is_never_shut_for_longer_than_its_longest_pause(events: list[tuple[str, float]]) -> None:
    breaker, now = CircuitBreaker(RULES), 0.0
    longest_s = RULES.longest_pause_s + 1e-9  # floats are rounded
    for event, passed in events:
        now += passed
        if event == "call" and breaker.admits(now):
            breaker.begin(now)
        elif event == "succeed":
            breaker.succeed()
        elif event in ("fail", "late"):
            breaker.fail(now, at_once=event == "late")
        elif event == "give_back":
            breaker.give_back()
        assert breaker.opens_in(now) <= longest_s
    breaker.give_back()
    assert breaker.admits(now + longest_s)
