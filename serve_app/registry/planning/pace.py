"""How often the registry does anew what takes the longer the more jobs there are."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MIN_AGE_S = 0.5
# No more than this share of the registry's time goes into any one such thing.
MAX_TIME_SHARE = 0.05


@dataclass(slots=True)
class Pace:
    """Of one such thing.

    Args:
        clock: a monotonic one.
        busy_clock: the processor's time of this thread.
    """

    clock: Callable[[], float] = time.monotonic
    busy_clock: Callable[[], float] = time.thread_time
    done_at: float = -math.inf
    """On a monotonic clock: when it was done last."""
    _busy_s: float = 0.0  # how long it has kept the processor busy since it began then

    def is_due(self, age_s: float = MIN_AGE_S) -> bool:
        """Whether it is older than that, and old enough for the time that it takes."""
        return self.clock() - self.done_at > max(age_s, self._busy_s / MAX_TIME_SHARE)

    @contextmanager
    def doing(self) -> Iterator[None]:
        """It is done in here, from its beginning."""
        self._busy_s = 0.0
        with self.going_on():
            yield
        self.done_at = self.clock()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """A part of it is done in here, which belongs to what was done last."""
        begun_s = self.busy_clock()
        yield
        self._busy_s += self.busy_clock() - begun_s
