"""When fewer replicas are kept: not before they stayed without need for a while. Pure.

More are wanted at once. Fewer are wanted when they were not needed for a while (`Hold`), and while
the replicas that would go have nothing to move (`Scaler`).

How long that while is follows from what came before (`Returns`). A replica that stays costs its
time until it is needed again; one that goes costs a start. To stay as long as a start takes costs at
most twice of what one does who knows when that will be, and nothing that knows nothing is surer
(Karlin et al., "Competitive Snoopy Caching", 1988). Who has seen how long needs were away chooses the
while that would have cost least (Irani et al., "Online Strategies for Dynamic Power Management", 2003).
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import inf

from serve_app.scheduling.scaling.capacity import StageNeed

# A job that is moved loses no step and a few seconds, so a busy replica is spared for a while and not for ever.
BUSY_PATIENCE_S = 60.0
# So long without an answer, and the time does not count as time without need.
SILENCE_S = 10.0
# Absences that are looked back on; with too few of them nothing is known.
RETURNS = 64
FEW_RETURNS = 8
# Of whiles that cost so nearly the same the longest: who is there makes nobody late.
NEARLY = 1.05


@dataclass(slots=True)
class Hold:
    """The most that was needed within a while: replicas stay that long without need.

    Time in which nobody knows what is needed does not count.
    """

    _needs: deque[tuple[float, int]] = field(default_factory=deque)  # falling, each with when it was needed last
    _seen_at: float = -inf

    def most(self, needed: int, now: float, for_s: float) -> int:
        """The most that was needed within the last for_s seconds, this time included.

        Args:
            needed: now.
            now: on a monotonic clock.
        """
        self._seen_at = now
        while self._needs and self._needs[-1][1] <= needed:
            self._needs.pop()
        self._needs.append((now, needed))
        while self._needs[0][0] < now - for_s:
            self._needs.popleft()
        return self._needs[0][1]

    def skip(self, now: float) -> None:
        """Nothing was known since the last call: what was needed then counts as needed until now."""
        gone_s = now - self._seen_at
        self._needs = deque((at + gone_s, needed) for at, needed in self._needs)
        self._seen_at = now


class Returns:
    """How long replicas were not needed before they were again."""

    def __init__(self) -> None:
        self._away_s: deque[float] = deque(maxlen=RETURNS)
        self._gone: deque[float] = deque()  # when each replica was needed last; of the last to go on the right
        self._needed = 0
        self._seen_at = -inf

    def note(self, needed: int, now: float, start_s: float) -> None:
        """So many are needed; who was away for a start would have been worth one."""
        while self._gone and now - self._gone[0] > start_s:
            self._gone.popleft()
            self._away_s.append(inf)
        for _ in range(min(len(self._gone), needed - self._needed)):
            self._away_s.append(now - self._gone.pop())
        self._gone.extend([self._seen_at] * (self._needed - needed))
        self._needed, self._seen_at = needed, now

    def skip(self, now: float) -> None:
        """Nothing was known since the last call: that time is no one's absence."""
        gone_s = now - self._seen_at
        self._gone = deque(at + gone_s for at in self._gone)
        self._seen_at = now

    def stay_s(self, start_s: float) -> float:
        """The while that would have cost least; a start, as long as little was seen."""
        if len(self._away_s) < FEW_RETURNS:
            return start_s
        away = sorted(self._away_s)
        costs, before_s = [(0.0, len(away) * start_s)], 0.0
        for count, away_s in enumerate(away, 1):
            if away_s > start_s:
                break
            before_s += away_s
            costs.append((away_s, before_s + (len(away) - count) * (away_s + start_s)))
        limit_s = min(cost_s for _, cost_s in costs) * NEARLY
        return max(stay_s for stay_s, cost_s in costs if cost_s <= limit_s)


class Scaler:
    """The number of replicas of one stage, from one answer of the registry to the next.

    Args:
        downscale_delay_s: replicas stay so long without need; None: as `Returns` says.
        busy_patience_s: fewer replicas are asked for after so long though those that go have work to move.
    """

    def __init__(self, downscale_delay_s: float | None, busy_patience_s: float = BUSY_PATIENCE_S) -> None:
        self._delay_s = downscale_delay_s
        self._patience_s = busy_patience_s
        self._hold = Hold()
        self._returns = Returns()
        self._need: StageNeed | None = None
        self._taken_at = 0.0
        self._wanted = 0
        self._fewer: tuple[int, float] | None = None  # of which target fewer were wanted, and since when

    def take(self, need: StageNeed, target: int, now: float) -> None:
        """Take an answer over. Time without answers does not count: what was needed last is needed until now.

        Args:
            target: replicas that Serve keeps now; at the first answer they count as needed until then.
            now: on a monotonic clock.
        """
        delay_s = self._returns.stay_s(need.start_s) if self._delay_s is None else self._delay_s
        if self._need is None:
            self._hold.most(target, now, delay_s)
        elif now - self._taken_at > SILENCE_S:
            self._hold.skip(now)
            self._returns.skip(now)
        self._need, self._taken_at = need, now
        self._returns.note(need.replicas, now, need.start_s)
        self._wanted = self._hold.most(need.replicas, now, delay_s)

    def replicas(self, target: int, running: Sequence[str], now: float) -> int:
        """How many Serve should keep; as many as now while nothing is known.

        Args:
            target: replicas that it keeps now.
            running: the names of those that run, the oldest first.
            now: on a monotonic clock.
        """
        if self._need is None:
            return target
        if self._wanted >= target:
            self._fewer = None
            return self._wanted
        if self._fewer is None or self._fewer[0] != target:
            self._fewer = (target, now)
        if now - self._fewer[1] >= self._patience_s:
            return self._wanted
        return _kept(target, self._wanted, running, self._need.busy)


def _kept(target: int, wanted: int, running: Sequence[str], busy: Collection[str]) -> int:
    """How many replicas stay, so that none that has something to move would go.

    Serve is told only a number. It stops what has not started first, then the newest on a node. Which
    of equally full nodes it takes first a policy cannot know: this is right where it goes by age.
    """
    stays = len(running)
    while stays > wanted and running[stays - 1] not in busy:
        stays -= 1
    return min(target, max(wanted, stays))
