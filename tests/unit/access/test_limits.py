import math
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.access.limits import DayBooking, Quotas, RateLimitResult, RateLimits, duration, whole_seconds
from serve_app.access.tenants import Tenant
from serve_app.errors import RateLimitError
from serve_app.jobs import Tier

PAUSES = st.lists(st.floats(0, 120), max_size=200)
NOON = 86_400 * 20_000 + 43_200.0
SECONDS = st.floats(0, 1000)


class Clock:
    """Stands still until it is moved; starts as high as that of a machine may after years."""

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


def test_a_token_comes_back_after_the_wait(clock: Clock) -> None:
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
def test_remaining_and_wait_are_true(per_minute: int, pauses: list[float]) -> None:
    """`remaining` more are granted at once, then none until `wait_s` have passed."""
    clock = Clock()
    limits = RateLimits(clock)
    for pause in pauses[:20]:
        clock.now += pause
        last = limits.take("acme", per_minute)
    if not pauses:
        return
    for _ in range(last.remaining):
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
    written = minutes * 60 + whole + milliseconds / 1000
    assert seconds - 1e-6 <= written <= seconds + 0.001 + 1e-6


@given(st.floats(0, 1e5))
def test_retry_after_is_whole_and_not_too_early(seconds: float) -> None:
    whole = whole_seconds(seconds)
    assert whole >= 1 and seconds - 1e-5 <= whole < max(seconds, math.ulp(0)) + 1 + 1e-5


def test_the_headers() -> None:
    assert RateLimitResult(True, limit=60, remaining=12, reset_s=48.0, wait_s=0.0).headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "12",
        "x-ratelimit-reset-requests": "48s",
    }


def acme(videos_per_minute: int | None = None, gpu_seconds_per_day: float | None = None) -> Tenant:
    return Tenant(
        "acme",
        Tier.STANDARD,
        "whsec_x",
        0.0,
        videos_per_minute=videos_per_minute,
        gpu_seconds_per_day=gpu_seconds_per_day,
    )


def refusal(
    quotas: Quotas, tenant: Tenant | None, used_s: float = 0, booked_s: float = 0, cost_s: float = 1
) -> RateLimitError | None:
    return quotas.refusal(tenant, DayBooking(used_s=used_s, booked_s=booked_s, cost_s=cost_s), now=NOON)


def refused(
    quotas: Quotas, tenant: Tenant, used_s: float = 0, booked_s: float = 0, cost_s: float = 1
) -> RateLimitError:
    error = refusal(quotas, tenant, used_s, booked_s, cost_s)
    assert error is not None
    return error


def test_without_limits_everything_goes(clock: Clock) -> None:
    quotas = Quotas(clock)
    for tenant in (None, acme()):
        for _ in range(1000):
            assert refusal(quotas, tenant, 1e9, 1e9, 1e9) is None


def test_videos_a_minute(clock: Clock) -> None:
    quotas = Quotas(clock)
    for _ in range(2):
        assert refusal(quotas, acme(2)) is None
    error = refused(quotas, acme(2))
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", 30)
    assert "2 videos a minute" in error.message
    clock.now += 30
    assert refusal(quotas, acme(2)) is None


def test_a_refused_video_is_not_counted(clock: Clock) -> None:
    quotas = Quotas(clock)
    for _ in range(5):
        assert refused(quotas, acme(1, 100), used_s=99, cost_s=2).code == "insufficient_quota"
    assert refusal(quotas, acme(1, 100), cost_s=2) is None
    assert refused(quotas, acme(1, 100), cost_s=2).code == "rate_limit_exceeded"


def test_the_day_ends_at_midnight_utc(clock: Clock) -> None:
    error = refused(Quotas(clock), acme(gpu_seconds_per_day=100), used_s=60, booked_s=30, cost_s=20)
    assert error.retry_after_s == 43_200
    assert all(part in error.message for part in ("100 GPU-seconds a day", "60 are used", "30 are booked", "about 20"))
    assert "after midnight UTC" in error.message


def test_the_message_says_that_a_video_never_fits(clock: Clock) -> None:
    message = refused(Quotas(clock), acme(gpu_seconds_per_day=100), cost_s=101).message
    assert "never fits" in message and "midnight" not in message


def test_a_refusal_crosses_processes(clock: Clock) -> None:
    error = refused(Quotas(clock), acme(gpu_seconds_per_day=1), used_s=2)
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.code, again.headers) == (error.message, error.code, error.headers)


@given(st.floats(0, 1000), SECONDS, SECONDS, SECONDS)
def test_a_video_is_taken_just_when_it_fits(limit: float, used: float, booked: float, cost: float) -> None:
    error = refusal(Quotas(Clock()), acme(gpu_seconds_per_day=limit), used, booked, cost)
    if used + booked + cost <= limit:
        assert error is None
    else:
        assert error is not None and error.code == "insufficient_quota"


@given(st.floats(1, 1000), st.lists(st.tuples(st.floats(0.1, 100), st.booleans()), max_size=100))
def test_a_day_stays_within_its_limit_when_estimates_are_right(
    limit: float, requests: list[tuple[float, bool]]
) -> None:
    """Each video is booked while it is made and used once it has ended."""
    quotas = Quotas(Clock())
    used = booked = 0.0
    for cost, ends in requests:
        if refusal(quotas, acme(gpu_seconds_per_day=limit), used, booked, cost) is not None:
            continue
        booked += cost
        if ends:
            used, booked = used + booked, 0.0
        assert used + booked <= limit * (1 + 1e-9)


@given(st.integers(1, 20), st.lists(st.tuples(st.floats(0, 60), st.booleans()), max_size=100))
def test_videos_a_minute_hold_whatever_else_is_refused(per_minute: int, requests: list[tuple[float, bool]]) -> None:
    clock = Clock()
    quotas = Quotas(clock)
    taken: list[float] = []
    for pause, fits in requests:
        clock.now += pause
        error = refusal(quotas, acme(per_minute, 10), cost_s=1 if fits else 11)
        if error is None:
            taken.append(clock.now)
        else:
            assert (error.code == "insufficient_quota") is (not fits)
    for first in range(len(taken)):
        assert len(taken) - first <= per_minute * (1 + (taken[-1] - taken[first]) / 60) + 1e-3
