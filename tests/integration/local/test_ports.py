"""Which ports are free, and who holds the others."""

import os
import socket
from pathlib import Path

import pytest

from serve_app.local.preflight import LOOPBACK, free_pair, free_ports, holder, is_free
from serve_app.local.store.seaweed_command import PORTS
from tests.support.servers import ports as tests_ports

needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")


def test_a_port_that_is_listened_on_is_not_free() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


def test_a_port_held_on_all_addresses_is_not_free_on_loopback() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not is_free(server.getsockname()[1])


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_no_port_is_given_to_two_servers_of_the_tests() -> None:
    given = [*tests_ports.free_ports(50), *range(first := tests_ports.free_block(), first + len(PORTS))]
    given += [*tests_ports.free_ports(50), *range(first := tests_ports.free_block(), first + len(PORTS))]
    assert len(set(given)) == len(given) == 100 + 2 * len(PORTS)


def test_a_pair_lies_within_the_range() -> None:
    assert all(free_pair(30_000) + 30_000 <= 65535 for _ in range(20))


@needs_proc
def test_the_holder_is_named() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        assert holder(server.getsockname()[1]).startswith(f"process {os.getpid()} (")


def test_a_holder_that_cannot_be_seen() -> None:
    assert holder(free_ports(1)[0]) == "another process"
