"""What a server that was started with its defaults listens on, read from the sockets of its processes."""

import ipaddress

import grpc
import psutil

from tests.support.servers.server import Server

# Serve's servers for calls between replicas: they bind every address, and nothing can tell them not to.
REPLICA = "ray::ServeReplica:"
CALL = "/ray.serve.ASGIService/HandleRequest"


def listening(server: Server) -> list[tuple[str, str, int]]:
    """Title, address and port for each socket that takes connections; IPv4 in its own form."""
    found = []
    for process in [psutil.Process(server.process.pid), *server.descendants()]:
        try:
            title = " ".join(process.cmdline())
            sockets = process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        found += [
            (title, s.laddr.ip.removeprefix("::ffff:"), s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN
        ]
    return found


def test_nothing_but_serves_own_calls_listens_beyond_loopback(server: Server) -> None:
    sockets = listening(server)
    assert len(sockets) > 10
    open_ones = [(title, port) for title, ip, port in sockets if not ipaddress.ip_address(ip).is_loopback]
    assert [title for title, _ in open_ones if not title.startswith(REPLICA)] == []
    for _, port in open_ones:
        assert refusal(port) in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def refusal(port: int) -> grpc.StatusCode:
    """How a call without Ray's token is answered."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(CALL)(b"", timeout=20)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK
