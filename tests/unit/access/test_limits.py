import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.access.limits import RateLimitResult, RateLimits, duration, rate_headers, whole_seconds

PAUSES = st.lists(st.floats(0, 120), max_size=200)


class Clock:
    """Stands still until told; starts as high as that of a machine may after years."""

    def __init__(self) -> None:
        self.now = 1e8

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_minutes_worth_may_come_at_once_and_no_more(clock: Clock) -> None:
    limits = RateLimits(clock)
    taken = [limits.take("acme", 3) for _ in range(4)]
    assert [one.granted for one in taken] == [True, True, True, False]
    assert [one.remaining for one in taken] == [2, 1, 0, 0]
    assert [one.reset_s for one in taken] == pytest.approx([20, 40, 60, 60])
    assert [one.wait_s for one in taken] == pytest.approx([0, 0, 20, 20])


def test_a_token_comes_back_when_it_was_told(clock: Clock) -> None:
    limits = RateLimits(clock)
    for _ in range(7):
        refused = limits.take("acme", 6)
    clock.now += refused.wait_s - 0.001
    assert not limits.take("acme", 6).granted
    clock.now += 0.001
    assert limits.take("acme", 6).granted
    assert not limits.take("acme", 6).granted


def test_tenants_do_not_share(clock: Clock) -> None:
    limits = RateLimits(clock)
    assert limits.take("a", 1).granted and limits.take("b", 1).granted
    assert not limits.take("a", 1).granted


def test_a_changed_limit_counts_from_the_next_take_on(clock: Clock) -> None:
    limits = RateLimits(clock)
    assert not [limits.take("acme", 2) for _ in range(3)][-1].granted
    clock.now += 6
    assert not limits.take("acme", 2).granted
    assert limits.take("acme", 10).granted


@given(st.integers(1, 10_000), PAUSES)
def test_never_more_than_a_minutes_worth_and_what_came_since(per_minute: int, pauses: list[float]) -> None:
    """In any window of t seconds, at most per_minute * (1 + t / 60)."""
    clock = Clock()
    limits = RateLimits(clock)
    granted: list[float] = []
    for pause in pauses:
        clock.now += pause
        granted += [clock.now for _ in range(3) if limits.take("acme", per_minute).granted]
    for first in range(len(granted)):
        allowed = per_minute * (1 + (granted[-1] - granted[first]) / 60)
        assert len(granted) - first <= allowed + 1e-3


@given(st.integers(1, 600), PAUSES)
def test_who_keeps_to_the_rate_is_never_refused(per_minute: int, extra: list[float]) -> None:
    clock = Clock()
    limits = RateLimits(clock)
    for pause in extra:
        assert limits.take("acme", per_minute).granted
        clock.now += 60 / per_minute + pause


@given(st.integers(1, 1000), PAUSES)
def test_what_is_told_is_true(per_minute: int, pauses: list[float]) -> None:
    """`remaining` more are granted at once, then none until `wait_s` have passed."""
    clock = Clock()
    limits = RateLimits(clock)
    for pause in pauses[:20]:
        clock.now += pause
        told = limits.take("acme", per_minute)
    if not pauses:
        return
    for _ in range(told.remaining):
        assert limits.take("acme", per_minute).granted
    refused = limits.take("acme", per_minute)
    assert not refused.granted and refused.wait_s > 0
    clock.now += refused.wait_s
    assert limits.take("acme", per_minute).granted


class Buckets(RuleBasedStateMachine):
    """Only names of the last two minutes are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limits = RateLimits(self.clock)
        self.seen: dict[str, float] = {}

    @rule(name=st.text("abcdefgh", min_size=1, max_size=2), per_minute=st.integers(1, 5))
    def take(self, name: str, per_minute: int) -> None:
        self.limits.take(name, per_minute)
        self.seen[name] = self.clock.now

    @rule(seconds=st.floats(0, 90))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.limits.take("clock", 1)
        self.seen["clock"] = self.clock.now

    @invariant()
    def bounded(self) -> None:
        recent = [name for name, at in self.seen.items() if self.clock.now - at <= 120]
        assert len(self.limits) <= len(recent)


TestBuckets = Buckets.TestCase


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.2, "1.2s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (90, "1m30s"),
        (3600.5, "60m0.5s"),
        (100, "1m40s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e5))
def test_a_duration_is_never_shorter_and_right_to_a_millisecond(seconds: float) -> None:
    found = re.fullmatch(r"(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", duration(seconds))
    assert found is not None
    minutes, whole, milliseconds = (float(part or 0) for part in found.groups())
    told = minutes * 60 + whole + milliseconds / 1000
    assert seconds - 1e-6 <= told <= seconds + 0.001 + 1e-6


@given(st.floats(0, 1e5))
def test_retry_after_is_whole_and_not_too_early(seconds: float) -> None:
    told = whole_seconds(seconds)
    assert told >= 1 and seconds - 1e-5 <= told < max(seconds, math.ulp(0)) + 1 + 1e-5


def test_the_headers() -> None:
    assert rate_headers(RateLimitResult(True, 60, 12, 48.0, 0.0)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "12",
        "x-ratelimit-reset-requests": "48s",
    }
