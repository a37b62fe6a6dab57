"""Who webhooks are being sent to at this moment, so that one slow target holds up no others. Pure.

When a webhook that was not taken is sent again. Pure.
"""

from collections import Counter
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Self

from serve_app.config import HOUR_S, WebhookSettings
from serve_app.jobs import retry_pause

MAX_AT_ONCE = 20
MAX_PER_TENANT = 12
MAX_PER_ORIGIN = 4


def origin_of(url: str) -> str:
    """Scheme, host and port, as they are written in the URL."""
    scheme, _, rest = url.partition("://")
    ends = [at for at in (rest.find("/"), rest.find("?")) if at >= 0]
    return f"{scheme}://{rest[: min(ends)] if ends else rest}"


class DeliveryLimits:
    """Counts what is under way, by origin and by tenant."""

    def __init__(self) -> None:
        self._origins: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()

    @property
    def free(self) -> int:
        """How many may be added in all."""
        return MAX_AT_ONCE - self._tenants.total()

    @property
    def full_origins(self) -> list[str]:
        return sorted(origin for origin, count in self._origins.items() if count >= MAX_PER_ORIGIN)

    @property
    def full_tenants(self) -> list[str]:
        return sorted(tenant for tenant, count in self._tenants.items() if count >= MAX_PER_TENANT)

    def enter(self, tenant: str, url: str) -> bool:
        """Add one; False, and nothing is added, if there is no room for it."""
        origin = origin_of(url)
        full = self._origins[origin] >= MAX_PER_ORIGIN or self._tenants[tenant] >= MAX_PER_TENANT
        if full or self.free <= 0:
            return False
        self._origins[origin] += 1
        self._tenants[tenant] += 1
        return True

    def leave(self, tenant: str, url: str) -> None:
        """Take one away that was added."""
        for counter, name in ((self._origins, origin_of(url)), (self._tenants, tenant)):
            counter[name] -= 1
            if counter[name] <= 0:
                del counter[name]

    def copy(self) -> Self:
        other = type(self)()
        other._origins, other._tenants = self._origins.copy(), self._tenants.copy()
        return other


LONGEST_PAUSE_S = HOUR_S
GONE = 410
MAX_DOUBLINGS = 40


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
    """When to send it again, Unix seconds; None: it is given up. The last try is `give_up_h` after the event.

    Args:
        status: of the answer to the last try; None if there was no answer.
        retry_after: its header of that name.
        attempts: tries so far, 1 and up.
        created_at: of the event, Unix seconds.
        now: Unix seconds.
        settings: the first pause, and when to give up.
        jitter: 0 to 1, drawn; takes up to half of the pause, so that what failed together does not return together.
    """
    give_up_at = created_at + settings.give_up_h * HOUR_S
    if status == GONE or now >= give_up_at:
        return None
    doubled = retry_pause(min(attempts, MAX_DOUBLINGS) + 1, settings.first_pause_s, LONGEST_PAUSE_S)
    wanted = min(LONGEST_PAUSE_S, retry_after_s(retry_after, now))
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
