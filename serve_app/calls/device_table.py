"""The devices of an application as an HTTP replica knows them: how much is on its way to each, and whom to spare. Pure.

Tables are found by the name of their deployment: Serve makes the router that reads them itself.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from serve_app.calls.breaker import BreakerRules, BreakerState, CircuitBreaker


@dataclass(slots=True)
class _Device:
    breaker: CircuitBreaker
    problem: str | None = None  # why it should get nothing now, as it says itself
    in_flight: int = 0  # cost of the calls that are on their way to it, or in it
    answered: int = 0  # calls, since it is known here


@dataclass(slots=True)
class DeviceTable:
    """By the ids of replicas. All times are of a monotonic clock, in seconds."""

    rules: BreakerRules = BreakerRules()
    _devices: dict[str, _Device] = field(default_factory=dict)

    def device(self, replica: str) -> _Device:
        """That of a replica, which is new here at its first call."""
        if replica not in self._devices:
            self._devices[replica] = _Device(CircuitBreaker(self.rules))
        return self._devices[replica]

    def keep_only(self, replicas: Iterable[str], now: float) -> None:
        """Forget all others: they have ended. One with calls on their way stays until they have ended, and one whose
        breaker is open until it is not: Serve may still offer it."""
        kept = set(replicas)
        self._devices = {
            name: one
            for name, one in self._devices.items()
            if name in kept or one.in_flight or one.breaker.state(now) is BreakerState.OPEN
        }

    def admits(self, replica: str, now: float) -> bool:
        """Whether a call may go there."""
        device = self.device(replica)
        return device.problem is None and device.breaker.admits(now)

    def rank(self, replicas: Iterable[str], now: float, avoid: Collection[str] = ()) -> list[str]:
        """Those that may be called, the one with least on its way first; none of those to avoid if there are others."""
        admitted = [name for name in replicas if self.admits(name, now)]
        others = [name for name in admitted if name not in avoid]
        return sorted(others or admitted, key=lambda name: self.device(name).in_flight)

    def opens_in(self, now: float) -> float | None:
        """Seconds until one may be called; 0 if one may now, None where none is known."""
        waits = [one.breaker.opens_in(now) for one in self._devices.values() if one.problem is None]
        return min(waits, default=None)

    def state(self, replica: str, now: float) -> BreakerState:
        return self.device(replica).breaker.state(now)

    def states(self, now: float) -> dict[BreakerState, int]:
        """How many devices there are of each."""
        counts = dict.fromkeys(BreakerState, 0)
        for device in self._devices.values():
            counts[device.breaker.state(now)] += 1
        return counts


TABLES: dict[str, DeviceTable] = {}
"""Of this process, by the names of deployments."""
