import asyncio
import socket
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve_app.access.targets import AddressInfo
from serve_app.webhooks.client import Answer, WebhookClient, public_socket
from tests.support.http.webhook_receiver import receiving

PATIENT_S = 120.0


class Names:
    """A resolver by which every name has these addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def __call__(self, host: str, port: int) -> Sequence[AddressInfo]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in self.addresses
        ]


async def post(url: str, client: WebhookClient | None = None) -> Answer:
    async with client or WebhookClient(PATIENT_S, allow_private=True) as used:
        return await used.post(url, b"{}", {"Content-Type": "application/json", "X-Mine": "1"})


async def test_what_is_posted_arrives() -> None:
    async with receiving() as receiver:
        assert await post(receiver.url("/a%20b?c=d%2Be")) == Answer(204, None)
        (got,) = receiver.requests
        assert (got.path, got.body, got.headers["x-mine"]) == ("/a%20b?c=d%2Be", b"{}", "1")
        assert got.headers["content-type"] == "application/json"


async def test_a_name_is_resolved_and_stands_in_the_host_header() -> None:
    async with receiving() as receiver:
        url = f"http://hook.example.com:{receiver.port}/"
        assert (await post(url, WebhookClient(PATIENT_S, True, Names("127.0.0.1")))).status == 204
        assert receiver.requests[0].headers["host"] == f"hook.example.com:{receiver.port}"


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["169.254.169.254"],
        ["127.0.0.1", "::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["0.0.0.0"],
        ["::"],
        ["100.100.100.200"],
    ],
)
async def test_no_connection_is_made_to_what_is_not_public(addresses: list[str]) -> None:
    async with receiving() as receiver:
        url = f"http://hook.example.com:{receiver.port}/"
        answer = await post(url, WebhookClient(PATIENT_S, False, Names(*addresses)))
        assert answer.status is None and answer.error is not None
        assert all(f"{address} is not a public address" in answer.error for address in addresses)
        assert receiver.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:7f00:1]", "localhost", "2130706433", "127.1"])
async def test_literal_addresses_and_localhost_are_refused_at_the_connection_too(host: str) -> None:
    async with receiving() as receiver:
        answer = await post(f"http://{host}:{receiver.port}/", WebhookClient(PATIENT_S, False))
        assert answer.status is None and answer.error is not None
        assert receiver.requests == []


def test_a_socket_is_made_for_public_addresses_of_the_internet_alone() -> None:
    tcp = socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
    for info in ((socket.AF_INET, *tcp, ("1.1.1.1", 443)), (socket.AF_INET6, *tcp, ("2606:4700::1111", 443, 0, 0))):
        made = public_socket(info)
        assert made.family == info[0]
        made.close()
    for family, address in ((socket.AF_INET, "10.0.0.1"), (socket.AF_INET6, "fd00::1"), (socket.AF_UNIX, "1.1.1.1")):
        with pytest.raises(PermissionError, match="is not a public address"):
            public_socket((family, *tcp, (address, 443)))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with receiving() as second:

        async def redirect(_: web.BaseRequest) -> web.Response:
            return web.Response(status=status, headers={"Location": second.url()})

        async with receiving(redirect) as first:
            answer = await post(first.url())
            assert answer.status == status
            assert answer.error is not None and "redirects are not followed" in answer.error
            assert (len(first.requests), second.requests) == (1, [])


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_every_2xx_is_taken(status: int) -> None:
    async def reply(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    async with receiving(reply) as receiver:
        assert await post(receiver.url()) == Answer(status, None)


@pytest.mark.parametrize(
    ("status", "error"), [(400, "400 Bad Request"), (503, "503 Service Unavailable"), (599, "599")]
)
async def test_every_other_answer_is_told_with_its_retry_after(status: int, error: str) -> None:
    async def reply(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "7"}, text="secret of the receiver")

    async with receiving(reply) as receiver:
        assert await post(receiver.url()) == Answer(status, f"the answer was {error}", "7")


async def test_a_target_that_does_not_answer_is_left_after_the_timeout() -> None:
    async def hang(_: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async with receiving(hang) as receiver:
        answer = await post(receiver.url(), WebhookClient(0.2, allow_private=True))
        assert answer == Answer(None, "there was no answer within 0.2 s")


async def test_a_name_that_is_not_resolved_in_time_is_left_after_the_timeout() -> None:
    async def silent(host: str, port: int) -> Sequence[AddressInfo]:
        await asyncio.Event().wait()
        return []

    answer = await post("http://hook.example.com/", WebhookClient(0.05, True, silent))
    assert answer == Answer(None, "there was no answer within 0.05 s")


async def test_a_name_that_is_unknown_is_told() -> None:
    async def unknown(host: str, port: int) -> Sequence[AddressInfo]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    answer = await post("http://hook.example.com/", WebhookClient(PATIENT_S, True, unknown))
    assert answer.status is None and answer.error is not None and "Name or service not known" in answer.error


async def test_a_body_without_end_is_not_read() -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    async with receiving(endless) as receiver:
        assert await post(receiver.url()) == Answer(200, None)


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * 100_000])
async def test_what_is_no_http_is_an_error_and_not_raised(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        got = await post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        assert got.status is None and got.error and len(got.error) <= 500


async def test_a_closed_port_is_an_error_and_not_raised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    answer = await post(f"http://127.0.0.1:{port}/")
    assert answer.status is None and answer.error is not None and "Cannot connect" in answer.error


async def test_no_cookie_is_kept_and_no_connection_used_again() -> None:
    ports = set()

    async def with_cookie(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        response = web.Response(status=200)
        response.set_cookie("session", "1")
        return response

    async with receiving(with_cookie) as receiver, WebhookClient(PATIENT_S, True, Names("127.0.0.1")) as client:
        for _ in range(2):
            await client.post(f"http://hook.example.com:{receiver.port}/", b"{}", {})
        assert all("cookie" not in got.headers for got in receiver.requests)
        assert len(ports) == 2


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as receiver, receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.base)
        monkeypatch.delenv("no_proxy", raising=False)
        assert (await post(receiver.url())).status == 204
        assert (len(receiver.requests), proxy.requests) == (1, [])


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate for localhost that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    unencrypted = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    both = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, unencrypted) + certificate.public_bytes(pem)
    (folder / "tls.pem").write_bytes(both)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem")
    return context


async def test_a_certificate_that_cannot_be_verified_is_refused(tmp_path: Path) -> None:
    async with receiving(tls=self_signed(tmp_path)) as receiver:
        answer = await post(f"https://localhost:{receiver.port}/")
        assert (
            answer.status is None and answer.error is not None and "certificate verify failed" in answer.error.lower()
        )
        assert receiver.requests == []
