"""The link to a named actor that dies, is made anew, is slow, or raises."""

import asyncio
import os
import signal
import uuid
from typing import Any

import pytest
import ray

from deployments.errors import PermanentError, RegistryUnavailableError
from deployments.replica.registry_link import RegistryLink
from serve_app.app import named_actor
from tests.support.registry.remote import RemoteRegistry
from tests.support.waiting import gone

NAMESPACE = "test-registry-link"


@pytest.fixture
def name(ray_cluster: None) -> str:
    return f"registry-{uuid.uuid4().hex}"


def _make(name: str) -> Any:
    """An actor that runs: how long its process takes to start is not what is tested."""
    actor = _begin(name)
    ray.get(actor.pid.remote())
    return actor


def _begin(name: str) -> Any:
    return named_actor(RemoteRegistry, name, NAMESPACE, {}).remote()


async def test_a_call_arrives(name: str) -> None:
    actor = _make(name)
    link = RegistryLink(name, NAMESPACE)
    assert await link.call(RemoteRegistry.add, 2, 3) == 5
    assert await asyncio.gather(*(link.call(RemoteRegistry.add, i, 1) for i in range(50))) == list(range(1, 51))
    ray.kill(actor)


async def test_what_the_method_raises_comes_out_as_itself(name: str) -> None:
    actor = _make(name)
    link = RegistryLink(name, NAMESPACE)
    with pytest.raises(PermanentError) as caught:
        await link.call(RemoteRegistry.fail)
    assert (type(caught.value), caught.value.code) == (PermanentError, "bad_prompt")
    assert str(caught.value) == "the prompt is empty"
    with pytest.raises(KeyError, match="nothing here") as missing:
        await link.call(RemoteRegistry.missing)
    assert type(missing.value) is KeyError
    ray.kill(actor)


async def test_a_restart_is_waited_out(name: str) -> None:
    actor = _make(name)
    link = RegistryLink(name, NAMESPACE, timeout_s=300)
    first = await link.call(RemoteRegistry.pid)
    os.kill(first, signal.SIGKILL)
    assert await link.call(RemoteRegistry.pid) != first
    ray.kill(actor)


async def test_an_actor_made_anew_is_found(name: str) -> None:
    link = RegistryLink(name, NAMESPACE, timeout_s=300)
    actor = _make(name)
    first = await link.call(RemoteRegistry.pid)
    ray.kill(actor)
    assert gone([first])
    waiting = asyncio.create_task(link.call(RemoteRegistry.pid))
    await asyncio.sleep(0)
    actor = await _make_once_the_name_is_free(name)
    assert await waiting != first
    ray.kill(actor)


async def _make_once_the_name_is_free(name: str) -> Any:
    while True:
        try:
            return _begin(name)
        except ValueError:
            await asyncio.sleep(0.05)


async def test_an_actor_that_is_not_there(name: str) -> None:
    link = RegistryLink(name, NAMESPACE, timeout_s=3)
    with pytest.raises(RegistryUnavailableError, match=rf"is not there .*try again.*'{name}', call of add"):
        await link.call(RemoteRegistry.add, 1, 2)


async def test_an_actor_that_does_not_answer(name: str) -> None:
    actor = _make(name)
    link = RegistryLink(name, NAMESPACE)
    await link.call(RemoteRegistry.add, 1, 2)
    with pytest.raises(RegistryUnavailableError, match=r"no answer within 0\.2 s"):
        await RegistryLink(name, NAMESPACE, timeout_s=0.2).call(RemoteRegistry.slow)
    assert await link.call(RemoteRegistry.add, 1, 2) == 3
    ray.kill(actor)
