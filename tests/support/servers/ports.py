"""Ports for the servers of tests, each given once, and only to one worker of a run.

A server binds its ports only seconds after they were chosen, and one that restarts is away for a while: a port that
nobody listens on may still be somebody's.
"""

import os

from serve_app.local import preflight as ports
from serve_app.local.preflight import PAIRED, is_free
from serve_app.local.store.seaweed_command import PORTS

# Beside those that a server chooses for itself.
RANGE = range(PAIRED.stop, 30_000)
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    found = ports.free_ports(count, [port for port in _own() if port not in _given])
    _given.update(found)
    return found


def free_block() -> int:
    """The first of as many consecutive free ports as the local store needs."""
    own = _own()
    while True:
        (first,) = ports.free_ports(1, own[: -len(PORTS)])
        block = range(first, first + len(PORTS))
        if _given.isdisjoint(block) and all(is_free(port) for port in block):
            _given.update(block)
            return first


def _own() -> range:
    """This worker's part of the range."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = len(RANGE) // workers
    return RANGE[worker * share : (worker + 1) * share]
