"""A second cluster on the same database and bucket, to which the clients are moved while the first one ends."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.report import say
from tests.cluster.life import DRAIN_S, Strike
from tests.cluster.ray_cluster import RayCluster
from tests.cluster.service import Service

# How long both take jobs, with the clients at the second, before the first is told to end.
BESIDE_S = 5.0


class Takeover:
    """The second cluster runs already; the strike moves the clients and ends the first one.

    before: the first cluster. addresses: of the second's pods.
    """

    def __init__(self, before: RayCluster, service: Service, addresses: Sequence[str]) -> None:
        self._before = before
        self._service = service
        self._addresses = addresses

    @property
    def strike(self) -> Strike:
        return Strike("takeover", lambda _: self._move())

    def _move(self) -> None:
        self._service.point_at(self._addresses)
        time.sleep(BESIDE_S)
        pods = [pod for group in self._before.workers.values() for pod in group]
        begun = time.monotonic()
        with ThreadPoolExecutor(len(pods)) as threads:
            ends = list(threads.map(lambda pod: pod.terminate(DRAIN_S), pods))
        self._before.head.terminate(DRAIN_S)
        took_s = time.monotonic() - begun
        say(f"  the first cluster ended in {took_s:.0f} s, its pods after {min(ends):.0f} to {max(ends):.0f} s")
