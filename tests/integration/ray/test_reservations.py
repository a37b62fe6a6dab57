"""Slots that were reserved by a caller that died, or that was frozen and comes too late."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.exceptions import ReplicaUnavailableError

from deployments.messages import Stage, StageTask
from deployments.replica.serve_private import Reservations, own_reservations
from serve_app.errors import NoReplicaError
from serve_app.registry.replicas import DEPLOYMENTS, StageRouter
from tests.support.waiting import gone
from tests.support.workers.fakes import task

MODEL_APPLICATION, DEPLOYMENT = DEPLOYMENTS[Stage.ENCODING]


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


@serve.deployment(name=DEPLOYMENT, max_ongoing_requests=2, ray_actor_options={"num_cpus": 0})
class TwoSlots:
    async def reserved(self) -> int:
        return len(own_reservations())

    async def run(self, task: StageTask) -> None:
        if task.attempt > 1:
            raise RuntimeError("this one fails")

    async def release(self) -> int:
        return await Reservations(kept_s=0).release_stale()


class Caller:
    """Reserves a slot and goes no further."""

    async def reserve(self) -> str:
        handle: Any = serve.get_deployment_handle(DEPLOYMENT, app_name=MODEL_APPLICATION)
        self._choice = handle.choose_replica()
        selection = await self._choice.__aenter__()
        return str(selection.replica_id)


@pytest.fixture(scope="module")
def handle(serve_cluster: None) -> Iterator[Any]:
    deployment: Any = TwoSlots
    yield serve.run(deployment.bind(), name=MODEL_APPLICATION, route_prefix=None)
    serve.delete(MODEL_APPLICATION)


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


async def test_a_caller_that_comes_too_late_has_not_begun_its_task(handle: Any) -> None:
    route = StageRouter()
    chosen: list[str] = []

    def accept(replica: str) -> bool:
        chosen.append(replica)
        return True

    def accept_late(replica: str) -> bool:
        """So late that the replica has given its slot back."""
        with ThreadPoolExecutor(1) as thread:  # this one's loop stands still
            assert thread.submit(lambda: handle.release.remote().result()).result() == 1
        return accept(replica)

    with pytest.raises(NoReplicaError):
        await route(task(Stage.ENCODING), accept_late)
    assert await handle.reserved.remote() == 0
    await route(task(Stage.ENCODING), accept)
    assert len(chosen) == 2
    with pytest.raises(RuntimeError, match="this one fails"):
        await route(replace(task(Stage.ENCODING), attempt=2), accept)
    assert await handle.reserved.remote() == 0


class Leaving:
    """A handle whose replica is gone from Serve's list once it was chosen."""

    @asynccontextmanager
    async def choose_replica(self, task: StageTask) -> AsyncIterator[Any]:
        yield SimpleNamespace(replica_id="r1")

    async def dispatch(self, selection: Any, task: StageTask) -> None:
        raise ReplicaUnavailableError("Replica r1 is no longer available")


async def test_a_replica_that_leaves_before_the_task_comes_has_not_begun_it() -> None:
    route = StageRouter(lambda stage: SimpleNamespace(run=Leaving()))
    asked: list[str] = []

    def accept(replica: str) -> bool:
        asked.append(replica)
        return True

    with pytest.raises(NoReplicaError):
        await route(task(Stage.ENCODING), accept)
    assert asked == ["r1"]


class TwoReplicas:
    """A handle of two replicas with two slots each: the one with more room is chosen, and room is waited for."""

    def __init__(self) -> None:
        self.free = {"r1": 2, "r2": 2}
        self.dispatched: list[tuple[str, dict[str, int]]] = []

    @asynccontextmanager
    async def choose_replica(self, task: StageTask) -> AsyncIterator[Any]:
        while not any(self.free.values()):
            await asyncio.sleep(0.001)
        name = max(self.free, key=lambda name: self.free[name])
        self.free[name] -= 1
        try:
            yield SimpleNamespace(replica_id=name)
        finally:
            self.free[name] += 1

    async def dispatch(self, selection: Any, task: StageTask) -> None:
        self.dispatched.append((selection.replica_id, dict(self.free)))


async def test_a_replica_that_was_refused_is_not_chosen_again_and_keeps_no_slot() -> None:
    replicas = TwoReplicas()
    await StageRouter(lambda stage: SimpleNamespace(run=replicas))(task(Stage.ENCODING), lambda name: name == "r2")
    assert replicas.dispatched == [("r2", {"r1": 2, "r2": 1})]
    assert replicas.free == {"r1": 2, "r2": 2}
