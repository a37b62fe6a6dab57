"""The directory of weights as Ray's actor."""

import asyncio
import uuid

import pytest
import ray

from deployments.weights_exchange.actor import RayDirectory
from deployments.weights_exchange.directory import ACTOR, Ask, DirectoryAwayError, Join, WeightsDirectory
from deployments.weights_exchange.swarm import Grant
from serve_app.app import named_actor


async def test_nodes_ask_the_actor_also_inside_a_running_loop(ray_cluster: None) -> None:
    namespace = f"weights-{uuid.uuid4().hex}"
    directory = RayDirectory(namespace)
    with pytest.raises(DirectoryAwayError):
        directory.join(Join("state", 2, "10.0.0.1:1", (), {0: "hash"}))
    actor = named_actor(WeightsDirectory, ACTOR, namespace, {}).remote()
    await asyncio.wrap_future(actor.ask.remote(Ask("state", "10.0.0.1:1", {}, {}, 0)).future())  # it runs
    token = directory.join(Join("state", 2, "10.0.0.1:1", (), {0: "hash"})).token
    directory.join(Join("state", 2, "10.0.0.2:1", (0, 1), {}))
    answer = directory.ask(Ask("state", "10.0.0.2:1", {}, {}, 2))
    assert answer.known and answer.token == token and len(token) > 40
    assert set(answer.grants) == {Grant(0, "10.0.0.1:1", "hash"), Grant(1, None, None)}
    assert not directory.ask(Ask("another", "10.0.0.2:1", {}, {}, 1)).known
    ray.kill(actor)
