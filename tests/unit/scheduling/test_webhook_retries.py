from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import HOUR_S, WebhookSettings
from serve_app.scheduling.webhook_pacing import LONGEST_PAUSE_S, next_try, retry_after_s

SETTINGS = WebhookSettings(first_pause_s=5, give_up_h=24)
NOW = 1_800_000_000.0


def tried(
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
    assert tried(attempts=attempts) == NOW + pause_s
    assert tried(None, attempts=attempts, jitter=1.0) == NOW + pause_s / 2


def test_a_delivery_is_tried_for_a_day_and_then_given_up() -> None:
    now, tries = NOW, 1
    while (at := tried(attempts=tries, now=now)) is not None:
        assert now < at <= NOW + 24 * HOUR_S
        now, tries = at, tries + 1
    assert now == NOW + 24 * HOUR_S
    assert tries == 34


def test_gone_is_given_up_at_once() -> None:
    assert tried(410) is None


@pytest.mark.parametrize(("header", "pause_s"), [("120", 120), ("2", 5), ("999999999", 3600), ("9" * 400, 3600)])
def test_retry_after_is_respected_within_an_hour(header: str, pause_s: float) -> None:
    assert tried(503, retry_after=header) == NOW + pause_s


def test_retry_after_may_be_a_date() -> None:
    date = datetime.fromtimestamp(NOW + 90, UTC)
    assert retry_after_s(format_datetime(date, usegmt=True), NOW) == 90.0
    assert retry_after_s(date.strftime("%a, %d %b %Y %H:%M:%S -0000"), NOW) == 90.0
    assert retry_after_s(format_datetime(date), NOW + 100) == 0.0


@pytest.mark.parametrize("header", [None, "", "soon", "-5", "1.5", "٣", "Wed, 99 Foo 2026 00:00:00 GMT"])
def test_a_bad_retry_after_asks_for_nothing(header: str | None) -> None:
    assert retry_after_s(header, NOW) == 0.0


@given(st.one_of(st.none(), st.text(), st.from_regex(r"\d{1,30}")), st.integers(1, 10**6), st.floats(0, 1))
def test_the_next_try_is_never_now_nor_later_than_an_hour(header: str | None, attempts: int, jitter: float) -> None:
    at = tried(429, retry_after=header, attempts=attempts, jitter=jitter)
    assert at is not None and NOW + 2.5 <= at <= NOW + LONGEST_PAUSE_S
