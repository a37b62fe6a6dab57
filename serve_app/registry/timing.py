"""How long the parts of the registry wait, in seconds."""

from dataclasses import dataclass

from serve_app.feed.read_leases import FeedTiming, PresenceTiming
from serve_app.scheduling.retries import OUTAGE_PAUSE_S


@dataclass(frozen=True, slots=True)
class DispatchTiming:
    """Of the loop that hands out work."""

    tick_s: float = 1.0  # a round begins at the latest this long after the last one
    reconcile_s: float = 5.0  # between two comparisons with SQL, if no other registry can be there; else every tick
    takeover_s: float = 10.0  # a lease from before a restart lapses if its worker reports nothing for this long
    frozen_s: float = 1.0  # a wait that ends this much too late means that the process stood still
    retry_s: float = 1.0  # a round that failed is tried again after this long


@dataclass(frozen=True, slots=True)
class DeadlineTiming:
    """Of the loop that cancels jobs at their deadlines."""

    longest_pause_s: float = 5.0  # between two looks into SQL: the wall clock may jump, another registry may die
    shortest_pause_s: float = 0.05  # between two looks, however many deadlines come
    retry_s: float = 1.0  # a look that failed is tried again after this long


@dataclass(frozen=True, slots=True)
class RegistryTiming:
    """Of the whole registry; how long a lease lasts is a setting (JobSettings)."""

    dispatch: DispatchTiming = DispatchTiming()
    deadlines: DeadlineTiming = DeadlineTiming()
    feed: FeedTiming = FeedTiming()
    presence: PresenceTiming = PresenceTiming()
    directive_hold_s: float = 2.0  # a replica's call waits this long for a directive
    forget_replica_s: float = 10.0  # a replica that does not announce itself for this long is gone
    outage_pause_s: float = OUTAGE_PAUSE_S  # before the next attempt of a job that failed by an outage
    saves_per_lease: float = 4.0  # every report renews a lease; SQL hears of it so often in lease_s
