"""What a tenant's new videos are checked against: videos a minute, GPU-seconds a day. No I/O.

Kept by the registry, which alone knows all of a tenant's videos.
"""

from collections.abc import Callable

from serve_app.access.limits import RateLimits, whole_seconds
from serve_app.access.tenants import DAY_S, Tenant
from serve_app.errors import RateLimitError


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
