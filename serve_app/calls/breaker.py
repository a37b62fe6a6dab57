"""A circuit breaker for one device: calls stay away from what fails, and one tries it again from time to time. Pure.

closed     calls go through; so many failures in a row open it
open       no call goes through, until its pause is over
half_open  one call goes through; if that succeeds it closes, if it fails it opens for twice as long

After M. Nygard, Release It!, 2nd edition, section 5.2.
"""

from dataclasses import dataclass
from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, and for how long. Times in seconds."""

    failures: int = 3  # in a row, until it opens
    first_pause_s: float = 5.0  # until the first call that tries the device again
    longest_pause_s: float = 60.0  # the pause doubles up to this with each try that fails


class CircuitBreaker:
    """Of one device. All times are of a monotonic clock, in seconds."""

    def __init__(self, rules: BreakerRules = BreakerRules()) -> None:
        self._rules = rules
        self._failures = 0  # in a row
        self._pause_s = rules.first_pause_s
        self._open_until: float | None = None  # None: it is closed
        self._trying = False  # a call is on its way that tries the device

    def state(self, now: float) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    @property
    def failures(self) -> int:
        """Calls that failed since the last one that succeeded."""
        return self._failures

    def opens_in(self, now: float) -> float:
        """Seconds until a call may go through; 0 if one may now."""
        if self._open_until is None:
            return 0.0
        return max(0.0, self._open_until - now)

    def admits(self, now: float) -> bool:
        """Whether a call may go through now; asking changes nothing."""
        return self.state(now) is BreakerState.CLOSED or (now >= (self._open_until or 0.0) and not self._trying)

    def begin(self, now: float) -> None:
        """A call goes through, which `admits` allowed."""
        self._trying = self.state(now) is BreakerState.HALF_OPEN

    def succeed(self) -> None:
        """A call was answered."""
        self._failures = 0
        self._pause_s = self._rules.first_pause_s
        self._open_until = None
        self._trying = False

    def fail(self, now: float, *, at_once: bool = False) -> bool:
        """A call failed by the device's fault; whether the breaker opened by that.

        Args:
            at_once: the device did not answer in time: another call would wait as long.
        """
        self._failures += 1
        was_open = self._open_until is not None
        if was_open and not self._trying and not at_once:
            return False  # a call that was on its way when it opened
        if not was_open and self._failures < self._rules.failures and not at_once:
            return False
        if self._trying:
            self._pause_s = min(2 * self._pause_s, self._rules.longest_pause_s)
        self._open_until = now + self._pause_s
        self._trying = False
        return not was_open

    def give_back(self) -> None:
        """A call ended without telling anything of the device: its client went away."""
        self._trying = False
