"""Who may answer reads from memory, and until when. Pure.

All moments are seconds on the monotonic clock.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from math import inf


@dataclass(frozen=True, slots=True)
class FeedTiming:
    """Seconds of the feed between a registry and its followers."""

    valid_s: float = 2.0  # a follower answers reads from memory for this long after it sent a poll
    hold_s: float = 1.0  # a poll without news is answered after this long
    pace_s: float = 0.03  # what replicas report is collected for this long; what clients write goes out at once
    first_batch_s: float = 15.0  # a follower waits this long for its first batch: as long as a call may take
    retry_s: float = 1.0  # a follower polls again this long after a poll that failed


@dataclass(frozen=True, slots=True)
class PresenceTiming:
    """Seconds by which the registries on one database notice each other."""

    beat_every_s: float = 1.0  # between two heartbeats, and between two looks at those of the others
    exclusive_s: float = 3.0  # a look that finds no other registry holds for this long; more than one beat
    silent_s: float = 15.0  # a registry is gone when its heartbeat has not changed for this long
    settled_looks: int = 3  # a registry that arrives is exclusive only after more looks than this

    @property
    def arrives_after_s(self) -> float:
        """Without a heartbeat for so long a registry arrives anew, before others take it for gone."""
        return self.silent_s / 2


class Presence(StrEnum):
    """The state of a registry among those on its database."""

    ARRIVING = "arriving"
    SHARED = "shared"
    EXCLUSIVE = "exclusive"


@dataclass(slots=True)
class _FollowerLease:
    seq: int  # it has taken in everything up to this number
    ends_at: float


class ReadLeases:
    """Keeps the promise that whoever wrote reads it back, whichever ingress replica is asked.

    A follower (an ingress replica) has a read lease: for `valid_s` after it sent a poll that was
    answered, it answers reads from memory and asks nobody. A lease cannot be taken back, so a
    writer waits: `ends_without` says until when.

    Registries on one database do not hear of each other's writes. Only an EXCLUSIVE one gives out
    leases; the followers of the others ask their registry, which asks SQL::

        start, or a heartbeat after `arrives_after_s` without one
                              |
                              v
                          ARRIVING     Other registries may not know of this one yet: its
                          |      |     writes wait for `exclusive_s` + `valid_s`.
        `settled_looks`   |      |     `settled_looks` looks at
        looks, and no     |      |     the heartbeats, and
        other one beats   v      v     another one beats
                   EXCLUSIVE -> SHARED   the heartbeat of another one has changed
                             <-          none has changed for `silent_s`; the feed begins anew

    EXCLUSIVE lapses `exclusive_s` after the last look: a registry that cannot read the heartbeats
    gives out no leases. One that is restarted within `arrives_after_s` is known to the others, and
    its writes do not wait. On SQLite a registry is alone and EXCLUSIVE for ever.

    Args:
        timing: of the feed.
        presence: how the registries notice each other.
        alone: no other registry can be on this database.
        restarted: a registry of this owner ran before, and its followers may still have leases.
        now: the moment of the start.
    """

    def __init__(
        self,
        timing: FeedTiming = FeedTiming(),
        presence: PresenceTiming = PresenceTiming(),
        *,
        alone: bool = True,
        restarted: bool = False,
        now: float = -inf,
    ) -> None:
        self._timing = timing
        self._presence = presence
        self._followers: dict[str, _FollowerLease] = {}
        self._unheard_until = now + timing.valid_s if restarted else -inf
        self._exclusive_until = inf if alone else -inf
        self._looks = 0

    # Followers

    def renew(self, follower: str, seq: int, now: float) -> None:
        """A poll of the follower has arrived. It was sent earlier, so its lease ends before this one.

        Args:
            seq: the follower has taken in everything up to this number; below 0 if it knows
                nothing.
        """
        self._followers[follower] = _FollowerLease(seq, now + self._timing.valid_s)

    def ends_without(self, seq: int, published_at: float, now: float) -> float | None:
        """When the last lease ends whose holder may not know `seq`; None if there is none.

        Args:
            seq: the number of a change.
            published_at: when it was published.
            now: the moment of the question.
        """
        self._followers = {name: lease for name, lease in self._followers.items() if lease.ends_at > now}
        behind = max((lease.ends_at for lease in self._followers.values() if lease.seq < seq), default=-inf)
        # A follower may poll on and on without having taken in `seq`. The answers hold `seq` from
        # now on, so only a poll from before can give it a lease without.
        behind = min(behind, published_at + self._timing.valid_s)
        end = max(behind, self._unheard_until)
        return end if end > now else None

    # Registries

    @property
    def presence(self) -> Presence:
        """The state of this registry, as it was after the last look."""
        if self._exclusive_until > -inf:
            return Presence.EXCLUSIVE
        return Presence.SHARED if self._looks > self._presence.settled_looks else Presence.ARRIVING

    def is_exclusive(self, now: float) -> bool:
        """Whether this registry gives out leases."""
        return now < self._exclusive_until

    def beat(self, now: float, silent_s: float) -> None:
        """The heartbeat of this registry is written; before, it was silent for `silent_s`."""
        if silent_s > self._presence.arrives_after_s:
            self._looks = 0
            self._exclusive_until = -inf
            # Another one sees the heartbeat at its next look; if it cannot look, its EXCLUSIVE
            # lapses. Its followers have leases for `valid_s` more.
            self._unheard_until = now + self._presence.exclusive_s + self._timing.valid_s

    def look(self, others: Collection[str]) -> bool:
        """Count a look at the heartbeats of the others. True: `hold_exclusive` may follow."""
        self._looks += 1
        if others or self._looks <= self._presence.settled_looks:
            self._exclusive_until = -inf
            return False
        return True

    def hold_exclusive(self, looked_at: float) -> None:
        """No other one was there at `looked_at`, and the feed has all that others did before."""
        self._exclusive_until = looked_at + self._presence.exclusive_s
