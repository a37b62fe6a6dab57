"""All that is used of Serve's private parts: the object with which it runs this replica.

It is no public API; the version of Ray is pinned, and tests with a real Serve use all that is used
here.

* Whether Serve wants this replica to leave: Serve calls a deployment's `__del__` only when all its
  calls have ended, so that a sampler would finish its videos first. So the replica's own flag is
  read.
* The slots that a dead caller has reserved: `choose_replica` reserves a slot, and its caller then
  sends the task or gives the slot back. A registry that is killed between the two does neither,
  Serve keeps the reservation for as long as the replica lives, and once all slots are gone that way
  the replica takes no task any more.
"""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Set
from typing import Any

import ray

TERMINATED = 128 + signal.SIGTERM  # the exit code
# A task follows its reservation within milliseconds. A caller that was frozen in between finds its slot gone and
# chooses again; its job loses no attempt by that (serve_app/registry/replicas.py).
RESERVATION_S = 15.0

_terminated = threading.Event()


def own_replica() -> Any | None:
    """Serve's object for this process; None outside of a replica."""
    if not ray.is_initialized():
        return None
    actor_id = ray.get_runtime_context().get_actor_id()
    actors = ray._private.worker.global_worker.actors
    return next((actor._replica_impl for key, actor in actors.items() if key.hex() == actor_id), None)


def is_draining() -> bool:
    """True once the Serve controller asked this replica to shut down, or the process got SIGTERM."""
    if _terminated.is_set():
        return True
    replica = own_replica()
    return replica is not None and bool(replica._shutting_down)


def watch_sigterm() -> None:
    """Take SIGTERM as a request to leave first.

    Python sets handlers in the main thread only, which in a Ray worker is Ray's; `faulthandler`
    sets one from any thread. It writes to a pipe, and a thread waits there.
    """
    reader, writer = os.pipe()
    faulthandler.register(signal.SIGTERM, file=writer, all_threads=False)

    def wait() -> None:
        os.read(reader, 1)
        _terminated.set()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


def end_if_terminated() -> None:
    """Once the work is handed back, do what SIGTERM asks for."""
    if _terminated.is_set():
        os._exit(TERMINATED)


def own_reservations() -> Set[str]:
    """The tokens of the slots of this replica that are reserved and not used yet; none outside of a replica."""
    replica = own_replica()
    return frozenset() if replica is None else frozenset(replica._reserved_slots)


class Reservations:
    """The reserved slots of this replica, each with the time since it was first seen here.

    Args:
        kept_s: how long a slot may stay reserved, in seconds.
        reserved: gives the tokens of those that are.
    """

    def __init__(self, kept_s: float = RESERVATION_S, reserved: Callable[[], Set[str]] = own_reservations) -> None:
        self._kept_s = kept_s
        self._reserved = reserved
        self._first_seen: dict[str, float] = {}

    def stale(self, now: float) -> list[str]:
        """Those that have lasted too long at `now`, in seconds of a monotonic clock."""
        self._first_seen = {token: self._first_seen.get(token, now) for token in self._reserved()}
        return [token for token, seen_at in self._first_seen.items() if now - seen_at >= self._kept_s]

    async def release_stale(self) -> int:
        """Give back those that have lasted too long; how many there were."""
        stale = self.stale(time.monotonic())
        for token in stale:
            # By a call, because slots belong to the event loop of Serve, which is not the one of the replica's code.
            await ray.get_runtime_context().current_actor.release_slot.remote(token)
        return len(stale)
