"""The actor that runs the local store: its process may be killed."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
import ray

from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.app import named_actor
from serve_app.local.preflight import is_free
from serve_app.local.store.seaweed import ACTOR_NAME, LocalStorage
from serve_app.local.store.seaweed_command import ports
from tests.support.waiting import gone

NAMESPACE = "test-local-storage"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.slow
async def test_a_killed_actor_brings_the_store_back(ray_cluster: None, local_port: int, tmp_path: Path) -> None:
    actor = named_actor(LocalStorage, ACTOR_NAME, NAMESPACE, {}).remote(
        StorageSettings(local_port=local_port), tmp_path
    )
    store = ObjectStore(await actor.ready.remote())
    await store.put("kept", b"still here", "video/mp4")

    guardian = (await actor.status.remote()).pid
    store_pids = [process.pid for process in psutil.Process(guardian).children(recursive=True)]
    os.kill(psutil.Process(guardian).ppid(), signal.SIGKILL)
    assert gone([guardian, *store_pids])

    settings = await actor.ready.remote()
    assert settings.endpoint == f"127.0.0.1:{local_port}"
    assert await store.get("kept") == b"still here"
    await actor.stop.remote()
    assert all(is_free(port) for port in ports(local_port).values())
    ray.kill(actor)
