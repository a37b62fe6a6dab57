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
    singles, _ = _own()
    found = ports.free_ports(count, [port for port in singles if port not in _given])
    _given.update(found)
    return found


def free_block() -> int:
    """The first of as many consecutive free ports as the local store needs.

    Blocks lie side by side, and single ports elsewhere: chosen at random they would soon leave no gap wide enough.
    """
    _, blocks = _own()
    for first in blocks[:: len(PORTS)]:
        block = range(first, first + len(PORTS))
        if block.stop <= blocks.stop and _given.isdisjoint(block) and all(is_free(port) for port in block):
            _given.update(block)
            return first
    raise AssertionError(f"each of the blocks in {blocks} was given to a test; give one back, or widen RANGE")


def _own() -> tuple[range, range]:
    """This worker's part of the range: for single ports, and for blocks."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = len(RANGE) // workers
    own = RANGE[worker * share : (worker + 1) * share]
    return own[: share // 3], own[share // 3 :]
