"""How long Ray may take to start. What stands in for Ray's look-up of the node is put where Ray itself finds it."""

from collections.abc import Callable

import pytest
from ray._private import services

from serve_app.local.ray_private import patient_start
from tests.support.waiting import PATIENCE_S


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
    with patient_start(PATIENCE_S), pytest.raises(RuntimeError, match="not there yet"):
        services.get_node("127.0.0.1:1", "node")


def test_a_node_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "get_node", registering(after=10**9))
    with patient_start(0, lambda: True), pytest.raises(RuntimeError, match="not there yet"):
        services.get_node("127.0.0.1:1", "node")
