"""How many webhooks are sent at once, and when one is sent again."""

from collections import Counter
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import HOUR_S, WebhookSettings
from serve_app.scheduling.webhook_pacing import (
    LONGEST_PAUSE_S,
    MAX_AT_ONCE,
    MAX_PER_ORIGIN,
    MAX_PER_TENANT,
    DeliveryLimits,
    next_try,
    origin_of,
    parse_retry_after,
)

targets = st.tuples(st.sampled_from("abc"), st.sampled_from([f"http://{n}.com/x" for n in range(6)]))
SETTINGS = WebhookSettings(first_pause_s=5, give_up_h=24)
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://a.com", "https://a.com"),
        ("https://a.com/x?y=/z", "https://a.com"),
        ("http://a.com:81?x=/y", "http://a.com:81"),
        ("http://[::1]:81/", "http://[::1]:81"),
    ],
)
def test_the_origin_is_what_stands_before_the_path(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@given(st.lists(st.one_of(targets, st.integers(0, 30)), max_size=60))
def test_no_limit_is_ever_exceeded_and_what_ends_makes_room(steps: list[tuple[str, str] | int]) -> None:
    limits = DeliveryLimits()
    under_way: list[tuple[str, str]] = []
    for step in steps:
        if isinstance(step, int):
            if under_way:
                limits.end(*under_way.pop(step % len(under_way)))
        elif limits.begin(*step):
            under_way.append(step)
        else:
            full = step[0] in limits.full_tenants or origin_of(step[1]) in limits.full_origins
            assert full or limits.free == 0
        tenants = Counter(tenant for tenant, _ in under_way)
        origins = Counter(origin_of(url) for _, url in under_way)
        assert limits.free == MAX_AT_ONCE - len(under_way) >= 0
        assert all(count <= MAX_PER_TENANT for count in tenants.values())
        assert limits.full_tenants == sorted(t for t, count in tenants.items() if count == MAX_PER_TENANT)
        assert limits.full_origins == sorted(o for o, count in origins.items() if count == MAX_PER_ORIGIN)


def test_a_copy_goes_its_own_way() -> None:
    limits = DeliveryLimits()
    copy = limits.copy()
    assert copy.begin("a", "http://a.com")
    assert (limits.free, copy.free) == (MAX_AT_ONCE, MAX_AT_ONCE - 1)


def next_at(
    status: int | None = 500,
    *,
    retry_after: str | None = None,
    attempts: int = 1,
    now: float = NOW,
    jitter: float = 0.0,
) -> float | None:
    """When an event of `NOW` is sent again after that answer."""
    return next_try(
        status=status,
        retry_after=retry_after,
        attempts=attempts,
        created_at=NOW,
        now=now,
        settings=SETTINGS,
        jitter=jitter,
    )


@pytest.mark.parametrize(
    ("attempts", "pause_s"), [(1, 5), (2, 10), (3, 20), (10, 2560), (11, 3600), (12, 3600), (5000, 3600)]
)
def test_pauses_double_up_to_an_hour(attempts: int, pause_s: float) -> None:
    assert next_at(attempts=attempts) == NOW + pause_s
    assert next_at(None, attempts=attempts, jitter=1.0) == NOW + pause_s / 2


def test_a_delivery_is_tried_for_a_day_and_then_given_up() -> None:
    now, tries = NOW, 1
    while (at := next_at(attempts=tries, now=now)) is not None:
        assert now < at <= NOW + 24 * HOUR_S
        now, tries = at, tries + 1
    assert now == NOW + 24 * HOUR_S
    assert tries == 34


def test_gone_is_given_up_at_once() -> None:
    assert next_at(410) is None


@pytest.mark.parametrize(("header", "pause_s"), [("120", 120), ("2", 5), ("999999999", 3600), ("9" * 400, 3600)])
def test_retry_after_is_respected_within_an_hour(header: str, pause_s: float) -> None:
    assert next_at(503, retry_after=header) == NOW + pause_s


def test_retry_after_may_be_a_date() -> None:
    date = datetime.fromtimestamp(NOW + 90, UTC)
    assert parse_retry_after(format_datetime(date, usegmt=True), NOW) == 90.0
    assert parse_retry_after(date.strftime("%a, %d %b %Y %H:%M:%S -0000"), NOW) == 90.0
    assert parse_retry_after(format_datetime(date), NOW + 100) == 0.0


@pytest.mark.parametrize("header", [None, "", "soon", "-5", "1.5", "٣", "Wed, 99 Foo 2026 00:00:00 GMT"])
def test_a_bad_retry_after_asks_for_nothing(header: str | None) -> None:
    assert parse_retry_after(header, NOW) == 0.0


@given(st.one_of(st.none(), st.text(), st.from_regex(r"\d{1,30}")), st.integers(1, 10**6), st.floats(0, 1))
def test_the_next_try_is_never_now_nor_later_than_an_hour(header: str | None, attempts: int, jitter: float) -> None:
    at = next_at(429, retry_after=header, attempts=attempts, jitter=jitter)
    assert at is not None and NOW + 2.5 <= at <= NOW + LONGEST_PAUSE_S
