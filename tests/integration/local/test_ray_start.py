"""How long Ray may take to start. What stands in for Ray's look-up of the node is put where Ray itself finds it."""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ray._private import services

from serve_app.local.ray_private import patient_start, raylet_lives
from tests.support.waiting import PATIENCE_S, wait_until


def registering(after: int) -> Callable[[str, str], str]:
    """A look-up that finds the node at the look after so many."""
    looks = 0

    def get_node(_gcs_address: str, node_id: str) -> str:
        nonlocal looks
        looks += 1
        if looks <= after:
            raise RuntimeError("not there yet")
        return node_id

    return get_node


def test_a_node_that_takes_its_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = registering(after=3)
    monkeypatch.setattr(services, "get_node", slow)
    with patient_start(PATIENCE_S, lambda: True):
        assert services.get_node("127.0.0.1:1", "node") == "node"
    assert services.get_node is slow


def test_a_node_whose_raylet_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "get_node", registering(after=10**9))
    alive = itertools.chain([True, True], itertools.repeat(False))
    looks = []

    def lives() -> bool:
        looks.append(next(alive))
        return looks[-1]

    with patient_start(PATIENCE_S, lives), pytest.raises(RuntimeError, match="not there yet"):
        services.get_node("127.0.0.1:1", "node")
    assert looks == [True, True, False]


def test_a_raylet_is_looked_for_below_a_process(tmp_path: Path) -> None:
    raylet = shutil.copy(shutil.which("sleep") or "", tmp_path / "raylet")
    starts_one = f"import subprocess, sys; subprocess.Popen([{str(raylet)!r}, '1000']).wait(); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", starts_one], stdin=subprocess.PIPE) as parent:
        process = psutil.Process(parent.pid)
        wait_until(lambda: raylet_lives(process))
        (child,) = process.children()
        child.kill()
        wait_until(lambda: not raylet_lives(process))


def test_a_node_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "get_node", registering(after=10**9))
    with patient_start(0, lambda: True), pytest.raises(RuntimeError, match="not there yet"):
        services.get_node("127.0.0.1:1", "node")
