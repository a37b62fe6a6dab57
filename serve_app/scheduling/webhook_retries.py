"""When a webhook that was not taken is sent again. Pure."""

from datetime import UTC
from email.utils import parsedate_to_datetime

from serve_app.config import WebhookSettings
from serve_app.jobs import retry_pause
from serve_app.webhooks.client import Answer

HOUR_S = 3600.0
LONGEST_PAUSE_S = HOUR_S
GONE = 410
MAX_DOUBLINGS = 40


def next_try(
    answer: Answer, attempts: int, created_at: float, now: float, settings: WebhookSettings, jitter: float
) -> float | None:
    """When to send it again, Unix seconds; None: it is given up. The last try is `give_up_h` after the event.

    Args:
        answer: to the last try. attempts: tries so far, 1 and up. created_at: of the event, Unix seconds.
        jitter: 0 to 1, drawn; takes up to half of the pause, so that what failed together does not return together.
    """
    give_up_at = created_at + settings.give_up_h * HOUR_S
    if answer.status == GONE or now >= give_up_at:
        return None
    doubled = retry_pause(min(attempts, MAX_DOUBLINGS) + 1, settings.first_pause_s, LONGEST_PAUSE_S)
    wanted = min(LONGEST_PAUSE_S, retry_after_s(answer.retry_after, now))
    return min(give_up_at, now + max(wanted, doubled * (1 - jitter / 2)))


def retry_after_s(header: str | None, now: float) -> float:
    """Seconds that the header Retry-After asks to wait (RFC 9110: seconds or a date); 0 without one, or a bad one."""
    if header is None:
        return 0.0
    header = header.strip()
    if header.isascii() and header.isdecimal():
        return float(header[:12])
    try:
        date = parsedate_to_datetime(header)
        return max(0.0, (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0
