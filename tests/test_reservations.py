"""Slots that were reserved by a caller that is gone."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import serve

from deployments.reservations import Reservations, own_reservations
from tests.processes import gone

APPLICATION = "reservations"


def test_a_reservation_is_stale_once_it_was_seen_for_long_enough() -> None:
    reserved = {"a"}
    reservations = Reservations(10, lambda: reserved)
    assert reservations.stale(100) == []
    reserved.add("b")
    assert reservations.stale(109) == []
    assert reservations.stale(110) == ["a"]
    reserved.remove("a")
    assert reservations.stale(118) == []
    reserved.add("a")
    assert reservations.stale(119) == ["b"]


def test_outside_of_a_replica_nothing_is_reserved() -> None:
    assert own_reservations() == frozenset()


@serve.deployment(max_ongoing_requests=2, ray_actor_options={"num_cpus": 0})
class TwoSlots:
    async def reserved(self) -> int:
        return len(own_reservations())

    async def release(self) -> int:
        return await Reservations(kept_s=0).release_stale()


class Caller:
    """Reserves a slot and goes no further."""

    async def reserve(self) -> str:
        handle: Any = serve.get_deployment_handle("TwoSlots", app_name=APPLICATION)
        self._choice = handle.choose_replica()
        selection = await self._choice.__aenter__()
        return str(selection.replica_id)


@pytest.fixture
def handle(ray_cluster: None) -> Iterator[Any]:
    serve.start(http_options={"location": "NoServer"})
    deployment: Any = TwoSlots
    yield serve.run(deployment.bind(), name=APPLICATION, route_prefix=None)
    serve.shutdown()


async def test_what_a_killed_caller_reserved_is_open_again(handle: Any) -> None:
    assert await handle.reserved.remote() == 0
    caller = ray.remote(Caller).options(num_cpus=0).remote()
    assert ray.get(caller.reserve.remote())
    pid = ray.get(caller.__ray_call__.remote(lambda _: os.getpid()))
    ray.kill(caller)
    assert gone([pid])
    # Serve by itself would keep it.
    assert await handle.reserved.remote() == 1
    assert await handle.release.remote() == 1
    assert await handle.reserved.remote() == 0
    assert await handle.release.remote() == 0
