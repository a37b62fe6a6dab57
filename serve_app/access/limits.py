"""What a tenant may do, counted: requests and videos a minute, GPU-seconds a day. No I/O.

A limit a minute is a token bucket of one minute's worth. All that a bucket must know is in how many seconds it is full
again (the generic cell rate algorithm): each token taken adds the seconds that one takes to come, and they may never be
more than a minute. So of n a minute, n may come at once, and in any t seconds at most n + n * t / 60.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.access.tenants import Tenant
from serve_app.config import DAY_S
from serve_app.errors import RateLimitError

WINDOW_S = 60.0
# Far below what a client can time, far above what sums up to a minute lose by rounding.
_SLACK_S = 1e-6


@dataclass(frozen=True, slots=True)
class RateLimitResult:
    """What came of taking a token."""

    granted: bool
    limit: int  # tokens a minute
    remaining: int  # tokens left
    reset_s: float  # seconds until all tokens are there again
    wait_s: float  # seconds until the next token, 0 if there is one now

    @property
    def headers(self) -> dict[str, str]:
        """The headers in which OpenAI describes a limit of requests."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": duration(self.reset_s),
        }


class RateLimits:
    """The buckets by name.

    A bucket that is full again is dropped: only the names of the last two minutes are kept.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # By name: seconds until the bucket is full, and the time of that reading. The time at which it is full would
        # lose digits when the clock has run for years.
        self._busy: dict[str, tuple[float, float]] = {}
        self._swept_at = clock()

    def __len__(self) -> int:
        return len(self._busy)

    def take(self, name: str, per_minute: int) -> RateLimitResult:
        """Take a token if there is one.

        Args:
            per_minute: the limit, from 1 up; it may differ from that of the last call.
        """
        now = self._clock()
        self._sweep(now)
        cost = WINDOW_S / per_minute
        busy = self._busy_s(name, now)
        granted = busy + cost <= WINDOW_S + _SLACK_S
        if granted:
            busy += cost
            self._busy[name] = (busy, now)
        remaining = max(0, math.floor((WINDOW_S - busy + _SLACK_S) / cost))
        wait_s = 0.0 if remaining else busy + cost - WINDOW_S
        return RateLimitResult(granted, limit=per_minute, remaining=remaining, reset_s=busy, wait_s=wait_s)

    def _busy_s(self, name: str, now: float) -> float:
        busy, at = self._busy.get(name, (0.0, now))
        return max(0.0, busy - (now - at))

    def _sweep(self, now: float) -> None:
        if now - self._swept_at >= WINDOW_S:
            self._swept_at = now
            self._busy = {name: reading for name, reading in self._busy.items() if self._busy_s(name, now)}


def whole_seconds(seconds: float) -> int:
    """For the header Retry-After: never too early, and at least 1."""
    return max(1, math.ceil(seconds - _SLACK_S))


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1.2s, 1m30s, rounded up to milliseconds."""
    milliseconds = math.ceil(max(0.0, seconds) * 1000 - _SLACK_S)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    tail = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{tail}" if minutes else tail


@dataclass(frozen=True, slots=True)
class DayBooking:
    """GPU-seconds of a tenant's day with one more job."""

    used_s: float  # of its jobs that ended today (UTC)
    booked_s: float  # estimated, of those that have not ended
    cost_s: float  # estimated, of the new one


NOTHING_BOOKED = DayBooking(used_s=0.0, booked_s=0.0, cost_s=0.0)


class Quotas:
    """What new jobs of tenants are counted against. Kept by the registry, which alone knows all of a tenant's jobs.

    Args:
        clock: seconds that never go back, for the limits a minute.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._videos = RateLimits(clock)

    def refusal(
        self, tenant: Tenant | None, booking: DayBooking, now: float, is_video: bool = True
    ) -> RateLimitError | None:
        """Why the tenant may not have one more job. A video that it may have is counted, a refused one is not.

        Args:
            tenant: None has no limits.
            now: Unix seconds.

        Returns:
            An error with the code `insufficient_quota` or `rate_limit_exceeded`, or None.
        """
        if tenant is None:
            return None
        limit_s = tenant.gpu_seconds_per_day
        if limit_s is not None and booking.used_s + booking.booked_s + booking.cost_s > limit_s:
            return _beyond_day(limit_s, booking, now)
        if tenant.videos_per_minute is None or not is_video:
            return None
        result = self._videos.take(tenant.name, tenant.videos_per_minute)
        if result.granted:
            return None
        wait_s = whole_seconds(result.wait_s)
        message = f"This tenant may make {result.limit} videos a minute; try again in {wait_s} s."
        return RateLimitError(message, "rate_limit_exceeded", wait_s)


def _beyond_day(limit_s: float, booking: DayBooking, now: float) -> RateLimitError:
    """The refusal of a job that does not fit into what is left of the day's `limit_s` GPU-seconds.

    What a job will cost is an estimate, so a day may end a little above its limit, and never by more than the jobs
    that were being made cost beyond their estimates.
    """
    message = (
        f"This tenant may use {limit_s:g} GPU-seconds a day (UTC): {booking.used_s:.4g} are used, "
        f"{booking.booked_s:.4g} are booked by jobs that are not finished, and this one needs about "
        f"{booking.cost_s:.4g}. "
    )
    if booking.cost_s > limit_s:
        message += "It never fits: ask for fewer steps, fewer frames, a smaller size, or fewer sequences."
    else:
        message += "Ask for less, or try again after midnight UTC."
    return RateLimitError(message, "insufficient_quota", whole_seconds(DAY_S - now % DAY_S))
