"""How often a tenant may do something: token buckets of one minute's worth. No I/O.

All that a bucket must know is in how many seconds it is full again (the generic cell rate algorithm): each take adds
the seconds that one token takes to come, and they may never be more than a minute. So of n a minute, n may come at
once, and in any t seconds at most n + n * t / 60.

What a tenant's new videos are checked against: videos a minute, GPU-seconds a day. No I/O.

Kept by the registry, which alone knows all of a tenant's videos.
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
    """How it ended. remaining: tokens left. reset_s: until all are there again. wait_s: until the next is, 0 if now."""

    granted: bool
    limit: int
    remaining: int
    reset_s: float
    wait_s: float


class RateLimits:
    """The buckets by name. clock: seconds that never go back.

    One that is full again knows nothing, and is dropped: what is kept are the names of the last two minutes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Seconds until it is full, as they were at a time: the time of it itself would lose digits after years.
        self._busy: dict[str, tuple[float, float]] = {}
        self._swept_at = clock()

    def __len__(self) -> int:
        return len(self._busy)

    def take(self, name: str, per_minute: int) -> RateLimitResult:
        """Take a token if there is one. per_minute: from 1 up; it may be another one than the last time."""
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
        return RateLimitResult(granted, per_minute, remaining, busy, wait_s)

    def _busy_s(self, name: str, now: float) -> float:
        busy, at = self._busy.get(name, (0.0, now))
        return max(0.0, busy - (now - at))

    def _sweep(self, now: float) -> None:
        if now - self._swept_at >= WINDOW_S:
            self._swept_at = now
            self._busy = {name: kept for name, kept in self._busy.items() if self._busy_s(name, now)}


def whole_seconds(seconds: float) -> int:
    """For the header Retry-After: never too early, and at least 1."""
    return max(1, math.ceil(seconds - _SLACK_S))


def rate_headers(taken: RateLimitResult) -> dict[str, str]:
    """The headers by which OpenAI tells a limit of requests."""
    return {
        "x-ratelimit-limit-requests": str(taken.limit),
        "x-ratelimit-remaining-requests": str(taken.remaining),
        "x-ratelimit-reset-requests": duration(taken.reset_s),
    }


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1.2s, 1m30s, rounded up to milliseconds."""
    milliseconds = math.ceil(max(0.0, seconds) * 1000 - _SLACK_S)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    tail = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{tail}" if minutes else tail


class Quotas:
    """clock: seconds that never go back; the minute's limits are counted by it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._videos = RateLimits(clock)

    def check(self, tenant: Tenant | None, now: float, used_today_s: float, booked_s: float, cost_s: float) -> None:
        """Count one new video of the tenant, or refuse it; one that is refused is not counted. None has no limits.

        Args:
            now: Unix seconds. used_today_s: GPU-seconds of the tenant's videos that ended today (UTC).
            booked_s: estimated GPU-seconds of those that have not ended. cost_s: estimated ones of the new video.

        Raises:
            RateLimitError: code `insufficient_quota` or `rate_limit_exceeded`.
        """
        if tenant is None:
            return
        if tenant.gpu_seconds_per_day is not None:
            check_day(tenant.gpu_seconds_per_day, now, used_today_s, booked_s, cost_s)
        if tenant.videos_per_minute is not None:
            self._take_video(tenant.name, tenant.videos_per_minute)

    def _take_video(self, name: str, per_minute: int) -> None:
        taken = self._videos.take(name, per_minute)
        if not taken.granted:
            wait_s = whole_seconds(taken.wait_s)
            message = f"This tenant may make {per_minute} videos a minute; try again in {wait_s} s."
            raise RateLimitError(message, "rate_limit_exceeded", wait_s)


def check_day(limit_s: float, now: float, used_today_s: float, booked_s: float, cost_s: float) -> None:
    """Raises RateLimitError if a video of `cost_s` GPU-seconds does not fit into what is left of the day's `limit_s`.

    What a video will cost is an estimate, so a day may end a little above its limit, and never by more than the videos
    that were being made cost beyond their estimates.
    """
    if used_today_s + booked_s + cost_s <= limit_s:
        return
    message = (
        f"This tenant may use {limit_s:g} GPU-seconds a day (UTC): {used_today_s:.4g} are used, {booked_s:.4g} are "
        f"booked by videos that are not finished, and this one needs about {cost_s:.4g}. "
    )
    if cost_s > limit_s:
        message += "It never fits: ask for fewer steps, fewer frames or a smaller size."
    else:
        message += "Ask for less, or try again after midnight UTC."
    raise RateLimitError(message, "insufficient_quota", whole_seconds(DAY_S - now % DAY_S))
