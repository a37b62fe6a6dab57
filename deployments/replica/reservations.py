"""Gives back the slots that a dead caller has reserved on this replica.

`choose_replica` reserves a slot, and its caller then sends the task or gives the slot back. A registry that is killed
between the two does neither, Serve keeps the reservation for as long as the replica lives, and once all slots are gone
that way the replica takes no task any more.
"""

import time
from collections.abc import Callable, Set

import ray

from deployments.replica.serve_private import own_replica

# A task follows its reservation within milliseconds. A caller that was frozen in between finds its slot gone and
# chooses again; its job loses no attempt by that (serve_app/registry/replicas.py).
KEPT_S = 15.0


def own_reservations() -> Set[str]:
    """The tokens of what is reserved on this replica and was not used yet; none outside of a replica."""
    replica = own_replica()
    return frozenset() if replica is None else frozenset(replica._reserved_slots)


class Reservations:
    """The reservations of this replica, each known since it was first seen here.

    Args:
        kept_s: how long one may last, in seconds.
        reserved: gives the tokens of those there are.
    """

    def __init__(self, kept_s: float = KEPT_S, reserved: Callable[[], Set[str]] = own_reservations) -> None:
        self._kept_s = kept_s
        self._reserved = reserved
        self._since: dict[str, float] = {}

    def stale(self, now: float) -> list[str]:
        """Those that have lasted too long at `now`, in seconds of a monotonic clock."""
        self._since = {token: self._since.get(token, now) for token in self._reserved()}
        return [token for token, since in self._since.items() if now - since >= self._kept_s]

    async def release_stale(self) -> int:
        """Give back those that have lasted too long; how many there were."""
        stale = self.stale(time.monotonic())
        for token in stale:
            # By a call, because slots belong to the event loop of Serve, which is not the one of the replica's code.
            await ray.get_runtime_context().current_actor.release_slot.remote(token)
        return len(stale)
