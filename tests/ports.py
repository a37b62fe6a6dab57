"""Ports for the servers of tests, from a range that no other worker of the same run takes one from meanwhile."""

import os

from serve_app import ports
from serve_app.ports import MAX_PORT, UNCLAIMED, is_free
from serve_app.weed_command import PORTS


def free_ports(count: int) -> list[int]:
    """See `serve_app.ports.free_ports`: a server binds its ports only seconds after they were chosen."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = len(UNCLAIMED) // workers
    return ports.free_ports(count, UNCLAIMED[worker * share : (worker + 1) * share])


def free_block() -> int:
    """The first of as many consecutive free ports as the local store needs."""
    while True:
        (first,) = free_ports(1)
        if first + len(PORTS) <= MAX_PORT and all(is_free(first + i) for i in range(len(PORTS))):
            return first
