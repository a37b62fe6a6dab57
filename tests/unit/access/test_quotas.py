import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access.limits import Quotas
from serve_app.access.tenants import Tenant
from serve_app.errors import RateLimitError
from serve_app.jobs import Tier

NOON = 86_400 * 20_000 + 43_200.0
SECONDS = st.floats(0, 1000)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def acme(videos_per_minute: int | None = None, gpu_seconds_per_day: float | None = None) -> Tenant:
    limits = {"videos_per_minute": videos_per_minute, "gpu_seconds_per_day": gpu_seconds_per_day}
    return Tenant("acme", Tier.STANDARD, "whsec_x", 0.0, **limits)  # type: ignore[arg-type]


def refusal(quotas: Quotas, tenant: Tenant, used: float, booked: float, cost: float) -> RateLimitError:
    with pytest.raises(RateLimitError) as caught:
        quotas.check(tenant, NOON, used, booked, cost)
    return caught.value


def test_without_limits_everything_goes() -> None:
    quotas = Quotas(Clock())
    for tenant in (None, acme()):
        for _ in range(1000):
            quotas.check(tenant, NOON, 1e9, 1e9, 1e9)


def test_videos_a_minute() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    for _ in range(2):
        quotas.check(acme(2), NOON, 0, 0, 1)
    error = refusal(quotas, acme(2), 0, 0, 1)
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", 30)
    assert "2 videos a minute" in error.message
    clock.now += 30
    quotas.check(acme(2), NOON, 0, 0, 1)


def test_a_refused_video_is_not_counted() -> None:
    quotas = Quotas(Clock())
    for _ in range(5):
        assert refusal(quotas, acme(1, 100), 99, 0, 2).code == "insufficient_quota"
    quotas.check(acme(1, 100), NOON, 0, 0, 2)
    assert refusal(quotas, acme(1, 100), 0, 0, 2).code == "rate_limit_exceeded"


def test_the_day_ends_at_midnight_utc() -> None:
    error = refusal(Quotas(Clock()), acme(gpu_seconds_per_day=100), 60, 30, 20)
    assert error.retry_after_s == 43_200
    assert all(part in error.message for part in ("100 GPU-seconds a day", "60 are used", "30 are booked", "about 20"))
    assert "after midnight UTC" in error.message


def test_what_never_fits_is_told_so() -> None:
    message = refusal(Quotas(Clock()), acme(gpu_seconds_per_day=100), 0, 0, 101).message
    assert "never fits" in message and "midnight" not in message


def test_a_refusal_crosses_processes() -> None:
    error = refusal(Quotas(Clock()), acme(gpu_seconds_per_day=1), 2, 0, 1)
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.code, again.headers) == (error.message, error.code, error.headers)


@given(st.floats(0, 1000), SECONDS, SECONDS, SECONDS)
def test_a_video_is_taken_just_when_it_fits(limit: float, used: float, booked: float, cost: float) -> None:
    quotas = Quotas(Clock())
    if used + booked + cost <= limit:
        quotas.check(acme(gpu_seconds_per_day=limit), NOON, used, booked, cost)
    else:
        assert refusal(quotas, acme(gpu_seconds_per_day=limit), used, booked, cost).code == "insufficient_quota"


@given(st.floats(1, 1000), st.lists(st.tuples(st.floats(0.1, 100), st.booleans()), max_size=100))
def test_a_day_stays_within_its_limit_when_estimates_are_right(limit: float, asked: list[tuple[float, bool]]) -> None:
    """Each video is booked while it is made and used once it has ended."""
    quotas = Quotas(Clock())
    used = booked = 0.0
    for cost, ends in asked:
        try:
            quotas.check(acme(gpu_seconds_per_day=limit), NOON, used, booked, cost)
        except RateLimitError:
            continue
        booked += cost
        if ends:
            used, booked = used + booked, 0.0
        assert used + booked <= limit * (1 + 1e-9)


@given(st.integers(1, 20), st.lists(st.tuples(st.floats(0, 60), st.booleans()), max_size=100))
def test_videos_a_minute_hold_whatever_else_is_refused(per_minute: int, asked: list[tuple[float, bool]]) -> None:
    clock = Clock()
    quotas = Quotas(clock)
    taken: list[float] = []
    for pause, fits in asked:
        clock.now += pause
        try:
            quotas.check(acme(per_minute, 10), NOON, 0, 0, 1 if fits else 11)
        except RateLimitError as error:
            assert (error.code == "insufficient_quota") is (not fits)
            continue
        taken.append(clock.now)
    for first in range(len(taken)):
        assert len(taken) - first <= per_minute * (1 + (taken[-1] - taken[first]) / 60) + 1e-3
