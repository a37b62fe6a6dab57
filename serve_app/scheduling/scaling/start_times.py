"""How long replicas take from being asked for until they take jobs, by stage. Pure.

Whoever sets the number of replicas tells it here; a replica that shows itself for the first time is
the one that was asked for longest ago. So the time that a node takes to come is in it. A replica
that replaces another was not asked for here, and teaches nothing.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from deployments.messages import Stage

# Each start makes the older ones weigh so much less: about the last three make up the mean.
_FADING = 0.7


@dataclass(slots=True)
class StartTimes:
    """Of one cluster.

    Args:
        nominal_s: what is taken while nothing was measured.
        give_up_s: a replica that is not there after so long is not waited for.
    """

    nominal_s: float
    give_up_s: float = 3600.0
    _means: dict[Stage, float] = field(default_factory=dict)
    _targets: dict[Stage, int] = field(default_factory=dict)
    _asked_at: dict[Stage, deque[float]] = field(default_factory=lambda: {stage: deque() for stage in Stage})

    def start_s(self, stage: Stage) -> float:
        """Seconds from asking for a replica until it takes jobs, as measured."""
        return self._means.get(stage, self.nominal_s)

    @property
    def measured(self) -> Mapping[Stage, float]:
        """The means of the stages of which a start was measured."""
        return MappingProxyType(self._means)

    def restore(self, means: Mapping[Stage, float]) -> None:
        """Take over what was measured before a restart; what was measured since is newer."""
        self._means = {**means, **self._means}

    def set_target(self, stage: Stage, target: int, there: int, now: float) -> None:
        """So many replicas are to be there.

        Args:
            target: how many.
            there: how many take jobs now; what was asked for before this object existed is not known otherwise.
            now: on a monotonic clock.
        """
        before = self._targets.get(stage)
        self._targets[stage] = target
        asked = self._asked_at[stage]
        while asked and now - asked[0] > self.give_up_s:
            asked.popleft()
        if before is not None and target > before:
            asked.extend([now] * (target - before))
        while len(asked) > max(0, target - there):  # Serve stops first what has not started
            asked.pop()

    def note_ready(self, stage: Stage, now: float) -> float | None:
        """A replica shows itself for the first time. Returns the new mean; None if it was not asked for."""
        if not self._asked_at[stage]:
            return None
        took_s = max(0.1, now - self._asked_at[stage].popleft())
        mean = self._means.get(stage, took_s)
        self._means[stage] = _FADING * mean + (1 - _FADING) * took_s
        return self._means[stage]

    def starting_in_s(self, stage: Stage, now: float) -> list[float]:
        """Seconds until each replica that was asked for is likely there, the first first; late ones are due now."""
        start_s = self.start_s(stage)
        return [max(0.0, at + start_s - now) for at in self._asked_at[stage]]
