"""The pace of webhooks: how many are sent at once, and when one that was not taken is sent again. Pure."""

from collections import Counter
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Self

from serve_app.config import HOUR_S, WebhookSettings
from serve_app.jobs import retry_pause

MAX_AT_ONCE = 20
MAX_PER_TENANT = 12
MAX_PER_ORIGIN = 4

LONGEST_PAUSE_S = HOUR_S
GONE = 410
MAX_DOUBLINGS = 40


class DeliveryLimits:
    """Counts the deliveries under way by origin and by tenant, so that one slow target does not hold up the others."""

    def __init__(self) -> None:
        self._origins: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()

    @property
    def free(self) -> int:
        """How many more may begin in all."""
        return MAX_AT_ONCE - self._tenants.total()

    @property
    def full_origins(self) -> list[str]:
        return sorted(origin for origin, count in self._origins.items() if count >= MAX_PER_ORIGIN)

    @property
    def full_tenants(self) -> list[str]:
        return sorted(tenant for tenant, count in self._tenants.items() if count >= MAX_PER_TENANT)

    def begin(self, tenant: str, url: str) -> bool:
        """Count a delivery that begins; False, and nothing is counted, if it would exceed a limit."""
        origin = origin_of(url)
        full = self._origins[origin] >= MAX_PER_ORIGIN or self._tenants[tenant] >= MAX_PER_TENANT
        if full or self.free <= 0:
            return False
        self._origins[origin] += 1
        self._tenants[tenant] += 1
        return True

    def end(self, tenant: str, url: str) -> None:
        """A delivery that began has ended."""
        for counter, name in ((self._origins, origin_of(url)), (self._tenants, tenant)):
            counter[name] -= 1
            if counter[name] <= 0:
                del counter[name]

    def copy(self) -> Self:
        other = type(self)()
        other._origins = self._origins.copy()
        other._tenants = self._tenants.copy()
        return other


def origin_of(url: str) -> str:
    """Scheme, host and port, as they are written in the URL."""
    scheme, _, rest = url.partition("://")
    ends = [at for at in (rest.find("/"), rest.find("?")) if at >= 0]
    return f"{scheme}://{rest[: min(ends)] if ends else rest}"


def next_try(
    *,
    status: int | None,
    retry_after: str | None,
    attempts: int,
    created_at: float,
    now: float,
    settings: WebhookSettings,
    jitter: float,
) -> float | None:
    """When to send a webhook again, Unix seconds; None: it is given up. The last try is `give_up_h` after the event.

    Args:
        status: of the answer to the last try; None if there was no answer.
        retry_after: its header of that name.
        attempts: tries so far, 1 and up.
        created_at: of the event, Unix seconds.
        now: Unix seconds.
        settings: the first pause, and when to give up.
        jitter: 0 to 1, drawn; shortens the pause by up to a half, so that what failed together is
            not sent together.
    """
    give_up_at = created_at + settings.give_up_h * HOUR_S
    if status == GONE or now >= give_up_at:
        return None
    doubled = retry_pause(min(attempts, MAX_DOUBLINGS) + 1, settings.first_pause_s, LONGEST_PAUSE_S)
    requested = min(LONGEST_PAUSE_S, parse_retry_after(retry_after, now))
    return min(give_up_at, now + max(requested, doubled * (1 - jitter / 2)))


def parse_retry_after(header: str | None, now: float) -> float:
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
