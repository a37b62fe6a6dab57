"""How many replicas are kept ready for urgent jobs that have not come yet. Pure.

A job whose target wait is shorter than a start is in time only if a slot is there when it comes. So
a stage keeps slots for such jobs, by how often they came lately and how long they hold a slot.

Say they come r a second, and hold slots for so long that N of them are held on the average of time,
Poisson distributed with the mean a (M/G/infinity). The nth slot has no urgent job in it while
N < n, and saves a job from being late when one comes while N = n - 1. It is worth its time while

    r v P(N = n - 1) > P(N < n),  that is  B(n - 1, a) > 1 / (r v)

where v is what it may cost that one job is not late, in seconds of a replica, and B is Erlang's
formula of loss (1917), since P(N = k) / P(N <= k) = B(k, a). To add slots until the next one costs
more than it saves is Moe's principle (Jensen, "Moe's Principle", Copenhagen 1950).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp

from deployments.messages import VIDEO_STAGES, Stage
from serve_app.jobs import Tier

# What came so long ago counts 1/e. Long enough for some jobs an hour, short enough for a day's rhythm.
FADING_S = 1800.0
MAX_SLOTS = 10_000


@dataclass(slots=True)
class TierArrivals:
    """What came in one tier: fading sums."""

    at: float  # Unix seconds of the sums
    jobs: float = 0.0
    beyond_s: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(VIDEO_STAGES, 0.0))
    """Seconds that the jobs hold slots of a stage beyond their target wait: who comes within it waits for them."""

    def fade(self, now: float) -> None:
        """Bring the sums to now; a clock that was set back changes nothing."""
        left = exp(-max(0.0, now - self.at) / FADING_S)
        self.at = max(self.at, now)
        self.jobs *= left
        self.beyond_s = {stage: seconds * left for stage, seconds in self.beyond_s.items()}


@dataclass(frozen=True, slots=True)
class UrgentLoad:
    """Jobs that cannot wait for a start."""

    rate: float = 0.0  # jobs a second
    erlangs: float = 0.0  # slots held by them at a time, on the average


class Arrivals:
    """How often jobs came lately.

    Args:
        targets_s: of each tier.
    """

    def __init__(self, targets_s: Mapping[Tier, float]) -> None:
        self._targets_s = dict(targets_s)
        self._tiers: dict[Tier, TierArrivals] = {}

    def note(self, tier: Tier, seconds: Mapping[Stage, float], now: float) -> None:
        """A job came.

        Args:
            seconds: of a device, in each stage.
            now: Unix seconds.
        """
        found = self._tiers.setdefault(tier, TierArrivals(now))
        found.fade(now)
        found.jobs += 1
        for stage, stage_s in seconds.items():
            found.beyond_s[stage] += max(0.0, stage_s - self._targets_s[tier])

    def urgent(self, stage: Stage, start_s: float, now: float) -> UrgentLoad:
        """Of the tiers whose target wait is shorter than a start of the stage."""
        tiers = [found for tier, found in self._tiers.items() if self._targets_s[tier] < start_s]
        for found in tiers:
            found.fade(now)
        return UrgentLoad(
            rate=sum(found.jobs for found in tiers) / FADING_S,
            erlangs=sum(found.beyond_s[stage] for found in tiers) / FADING_S,
        )

    @property
    def sums(self) -> Mapping[Tier, TierArrivals]:
        """To be kept over a restart."""
        return self._tiers

    def restore(self, sums: Mapping[Tier, TierArrivals]) -> None:
        """Take over what was kept before a restart; what was noted since comes on top."""
        for tier, kept in sums.items():
            noted = self._tiers.setdefault(tier, TierArrivals(kept.at))
            now = max(noted.at, kept.at)
            for one in (noted, kept):
                one.fade(now)
            noted.jobs += kept.jobs
            for stage, beyond_s in kept.beyond_s.items():
                noted.beyond_s[stage] += beyond_s


def slots_kept(load: UrgentLoad, worth_s: float) -> int:
    """The slots that are worth being kept for jobs that come like this.

    Args:
        load: of the stage.
        worth_s: v above; 0 keeps none.
    """
    if load.rate * worth_s <= 1.0:
        return 0
    bound = 1.0 / (load.rate * worth_s)
    slots, loss = 0, 1.0  # B(0, a)
    while loss > bound and slots < MAX_SLOTS:
        slots += 1
        loss = load.erlangs * loss / (slots + load.erlangs * loss)
    return slots
