"""Requests that nobody sends by mistake: each has an answer below 500, makes nothing, and leaves the server working.

Odd values in otherwise sound requests are in test_bad_input, single bodies and content types in test_request_body.
"""

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from serve_app.config import AppSettings
from serve_app.ingress.app import create_app
from serve_app.requests.body import MAX_DISCARDED_BYTES
from tests.support.http.fakes import FakeServices, shapes_settings
from tests.support.http.memory_http import serving

MAKING = ("/v1/videos", "/generate")
FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n'
MEGABYTE = 1_000_000


def field(value: bytes) -> bytes:
    return b'{"prompt": "a red circle", "text": "a red circle", "seed": ' + value + b"}"


JSON_BODIES: dict[str, bytes] = {
    "deep lists": b"[" * 900_000,
    "deep lists that end": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep value": field(b"[" * 400 + b"]" * 400),
    "integer of a million digits": field(b"9" * 990_000),
    "negative integer of many digits": field(b"-" + b"9" * 5000),
    "integer beyond 64 bits": field(b"18446744073709551617"),
    "float beyond doubles": field(b"1e999999"),
    "float of many digits": field(b"0." + b"1" * 900_000),
    "exponent of many digits": field(b"1e" + b"9" * 900_000),
    "NaN": field(b"NaN"),
    "infinity": field(b"-Infinity"),
    "hexadecimal": field(b"0x10"),
    "underscores": field(b"1_000"),
    "full-width digits": field("１２".encode()),
    "boolean for a number": field(b"true"),
    "number as text": field(b'"5"'),
    "null byte": b'{"prompt": "a\x00b"}',
    "escaped null byte": b'{"prompt": "a\\u0000b", "text": "a\\u0000b"}',
    "half a surrogate pair": b'{"prompt": "\\ud800", "text": "\\ud800"}',
    "halves the wrong way round": b'{"prompt": "\\udc00\\ud800", "text": "\\udc00\\ud800"}',
    "surrogate as a name": b'{"\\ud800": 1}',
    "surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "overlong UTF-8": b'{"prompt": "\xc0\xaf"}',
    "two byte order marks": b"\xef\xbb\xbf" * 2 + field(b"1"),
    "byte order marks alone": b"\xef\xbb\xbf" * 300_000,
    "UTF-16": field(b"1").decode().encode("utf-16"),
    "UTF-32": field(b"1").decode().encode("utf-32-be"),
    "latin-1": '{"prompt": "é"}'.encode("latin-1"),
    "gzip under plain headers": gzip.compress(field(b"1")),
    "two objects": field(b"1") + field(b"2"),
    "comments": b'{"prompt": "x" /* y */}',
    "single quotes": b"{'prompt': 'x'}",
    "trailing comma": b'{"prompt": "x",}',
    "cut off": b'{"prompt": "x',
    "last of equal keys is bad": b'{"prompt": "x", "text": "x", "seed": 1, "seed": -1}',
    "a hundred thousand keys": b"{" + b",".join(b'"%d":1' % i for i in range(90_000)) + b"}",
    "prototype": b'{"prompt": "x", "text": "x", "__proto__": {"seed": 1}, "__class__": "x"}',
    "empty name": b'{"": 1}',
    "long name": b'{"' + b"a" * 900_000 + b'": 1}',
    "long prompt": b'{"prompt": "' + b"a" * 900_000 + b'", "text": "' + b"a" * 10_000 + b'"}',
    "many characters of one letter": (
        '{"prompt": "a' + "\u0301" * 400_000 + '", "text": "' + "\u0301" * 9000 + '"}'
    ).encode(),
    "nothing to see": '{"prompt": "\u200b\u2060\u00ad", "text": "\u200b\u2060\ufeff"}'.encode(),
    "white space": b" " * 900_000,
    "only a number": b"1" * 900_000,
}
FORM_BODIES: dict[str, bytes] = {
    "many parts": (PART + b"\r\nx\r\n") * 15_000 + b"--x--\r\n",
    "many headers of a part": PART + b"a:b\r\n" * 150_000 + b"\r\nx\r\n--x--\r\n",
    "long header of a part": PART + b"a:" + b"b" * 900_000 + b"\r\n\r\nx\r\n--x--\r\n",
    "long name of a part": PART[:-3] + b"a" * 900_000 + b'"\r\n\r\nx\r\n--x--\r\n',
    "many parameters of a part": PART[:-2] + b";a=b" * 200_000 + b"\r\n\r\nx\r\n--x--\r\n",
    "almost boundaries": PART + b"\r\n" + b"\r\n--" * 200_000 + b"\r\n--x--\r\n",
    "no end": PART + b"\r\n" + b"x" * 900_000,
    "a part without headers": b"--x\r\n\r\nvalue\r\n--x--\r\n",
    "null byte in a name": PART.replace(b"prompt", b"pro\x00mpt") + b"\r\nx\r\n--x--\r\n",
    "null byte in a value": PART + b"\r\na\x00b\r\n--x--\r\n",
    "a file for the prompt": PART[:-2] + b'; filename="../../x"\r\n\r\nx\r\n--x--\r\n',
    "nothing": b"--x--\r\n",
    "nothing before the parts": b"--x--\r\n" + PART + b"\r\nx\r\n--x--\r\n",
    "a preamble without an end": b"x" * 900_000,
    "almost boundaries before the parts": b"\r\n--" * 200_000,
    "boundaries that pad without an end": b"\r\n--x" + b" " * 900_000,
    "padded boundaries without an end": b"\r\n--x \t " * 100_000,
}


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
async def client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    # The transport raises what a route did not handle, so a 500 cannot go unseen.
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        yield client


def assert_enveloped(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text[:500]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 1500


async def post(client: httpx.AsyncClient, path: str, body: Any, kind: str, **headers: str) -> httpx.Response:
    return await client.post(path, content=body, headers={"Content-Type": kind, **headers})


@pytest.mark.parametrize("path", MAKING)
@pytest.mark.parametrize("body", JSON_BODIES.values(), ids=JSON_BODIES.keys())
async def test_json(client: httpx.AsyncClient, services: FakeServices, path: str, body: bytes) -> None:
    assert_enveloped(await post(client, path, body, "application/json"), 400)
    assert not services.memory.jobs


@pytest.mark.parametrize("path", MAKING)
@pytest.mark.parametrize("body", FORM_BODIES.values(), ids=FORM_BODIES.keys())
async def test_forms(client: httpx.AsyncClient, services: FakeServices, path: str, body: bytes) -> None:
    assert_enveloped(await post(client, path, body, FORM), 400)
    assert not services.memory.jobs


@pytest.mark.parametrize(
    "body", [b"a=1&" * 200_000, b"a=" + b"%41" * 300_000, b"%00=%00", b"&" * 900_000, b"=" * 900_000]
)
async def test_url_encoded(client: httpx.AsyncClient, body: bytes) -> None:
    assert_enveloped(await post(client, "/v1/videos", body, "application/x-www-form-urlencoded"), 400)


@pytest.mark.parametrize(
    "kind",
    ["application/json" + ";a=b" * 15_000, "application/json" + ";" * 60_000, "application/json; charset=utf-7"]
    + ["application/json; charset=" + "x" * 60_000, "application/json;charset=utf-16le", "x" * 60_000]
    + ["multipart/form-data; boundary=" + "y" * 60_000, 'application/json; a="' + '\\"' * 30_000],
)
async def test_content_types(client: httpx.AsyncClient, services: FakeServices, kind: str) -> None:
    assert_enveloped(await post(client, "/v1/videos", b'{"seed": -1}', kind), 400, 415)
    assert not services.memory.jobs


@pytest.mark.parametrize("path", MAKING)
async def test_a_compressed_body_is_told_that_it_is(client: httpx.AsyncClient, path: str) -> None:
    bomb = gzip.compress(b" " * 50 * MEGABYTE)
    answer = await post(client, path, bomb, "application/json", **{"Content-Encoding": "gzip"})
    assert_enveloped(answer, 415)
    assert "without compression" in answer.json()["error"]["message"]


async def test_a_hundred_megabytes_are_not_kept(services: FakeServices) -> None:
    piece = b" " * 65_536
    served = 0

    async def receive() -> dict[str, Any]:
        nonlocal served
        served += len(piece)
        return {"type": "http.request", "body": piece, "more_body": served < 100 * MEGABYTE}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    app, headers = create_app(services), [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/v1/videos", "headers": headers, "query_string": b""}
    tracemalloc.start()
    try:
        await app(scope, receive, send)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    limit = services.settings.ingress.max_body_bytes
    assert served <= limit + MAX_DISCARDED_BYTES + 2 * len(piece)
    assert peak < 5 * limit


TRICKS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "..\\..\\windows",
    ".",
    "video_" + "0" * 32 + "/../../../etc/passwd",
    "video_" + "0" * 32 + "\x00",
    "video_" + "0" * 31 + "\n",
    "video_" + "０" * 32,
    "video_" + "٠" * 32,
    "VIDEO_" + "0" * 32,
    "video_" + "A" * 32,
    "video_" + "0" * 20_000,
    "\x00" * 32,
    "\u202e" * 32,
    "%",
    "';drop table jobs;--",
    "{{7*7}}${7*7}",
    "<script>alert(1)</script>",
    "file:///etc/passwd",
    "*",
]


def routes_of_videos() -> Iterator[tuple[str, str]]:
    for path, methods in create_app(FakeServices()).openapi()["paths"].items():
        if "{" in path:
            yield from ((method.upper(), path) for method in methods)


@pytest.mark.parametrize(("method", "path"), [*routes_of_videos()])
async def test_no_route_takes_another_id(
    client: httpx.AsyncClient, services: FakeServices, method: str, path: str
) -> None:
    template = path.replace("{character_id}", "{video_id}")
    for trick in TRICKS:
        for part in (quote(trick, safe=""), quote(trick, safe="/%")):
            # Dots are encoded lest the client itself walks the path.
            part = part.replace(".", "%2E")
            answer = await client.request(method, template.format(video_id=part), json={"prompt": "a red circle"})
            if method == "HEAD":
                assert (answer.status_code, answer.content) == (404, b"")
            else:
                assert_enveloped(answer, 400, 404, 405)
            assert answer.headers["content-type"] == "application/json"
    assert not services.memory.jobs


async def test_digits_of_other_alphabets_are_no_numbers_to_page_by(client: httpx.AsyncClient) -> None:
    for limit in ("٣", "３", "1_0", " 5 ", "0x5", "5" * 5000, "1e1", "+"):
        answer = await client.get("/v1/videos", params={"limit": limit})
        assert answer.status_code in (200, 400)
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] == "limit"


async def exchange(url: str, *pieces: bytes, until_closed: bool = False) -> bytes:
    """Send bytes as they are; what came back when the server has answered, or has closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    sending = asyncio.create_task(_send(writer, pieces))
    try:
        return await asyncio.wait_for(reader.read() if until_closed else _answer(reader), 300)
    except ConnectionResetError:
        return b""
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def _send(writer: asyncio.StreamWriter, pieces: tuple[bytes, ...]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


def head(*lines: str, path: str = "/v1/videos", method: str = "POST") -> bytes:
    kind = "Content-Type: application/json"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", kind, *lines, "", ""]).encode("latin-1")


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def announced(length: int, *lines: str) -> bytes:
    return head(f"Content-Length: {length}", *lines)


async def test_a_client_that_waits_to_be_told_to_send_is_refused_first(url: str, services: FakeServices) -> None:
    limit = services.settings.ingress.max_body_bytes
    answer = await exchange(url, announced(limit + 1, "Expect: 100-continue"), until_closed=True)
    assert status(answer) == 413
    assert b"connection: close" in answer.lower()
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] == "request_too_large"
    told = await exchange(url, announced(2, "Expect: 100-continue"), b"{}")
    assert status(told) == 100
    await assert_working(url)


async def test_a_body_that_is_announced_far_too_large_is_refused_unread(url: str, services: FakeServices) -> None:
    length = services.settings.ingress.max_body_bytes + MAX_DISCARDED_BYTES + 1
    answer = await exchange(url, announced(length), until_closed=True)
    assert status(answer) == 413
    assert b"connection: close" in answer.lower()
    await assert_working(url)


async def test_who_sends_a_little_too_much_is_answered_and_may_go_on(services: FakeServices) -> None:
    async with serving(services, services.memory) as url, httpx.AsyncClient(base_url=url) as client:
        for length in (services.settings.ingress.max_body_bytes + 1, 10 * MEGABYTE):
            answer = await client.post("/v1/videos", json="x" * length)
            assert_enveloped(answer, 413)
            assert "connection" not in answer.headers
        assert (await client.get("/v1/models")).status_code == 200


async def assert_working(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/v1/models")).status_code == 200


RAW = {
    "null byte in the path": head(path="/v1/videos/video_\x00", method="GET"),
    "raw bytes in the path": head(path="/v1/videos/\xff\xfe", method="GET"),
    "dots in the path": head(path="/v1/videos/../../../etc/passwd", method="GET"),
    "another server's URL": head(path="http://example.com/v1/videos/x", method="GET"),
    "a path of a megabyte": head(path="/v1/videos/" + "a" * MEGABYTE, method="GET"),
    "no such method": head(method="B\x01D"),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50 + b"\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
    "a thousand headers": head(*(f"X-{i}: {i}" for i in range(1000)), "Content-Length: 2") + b"{}",
    "a header of a megabyte": head("X-Long: " + "a" * MEGABYTE, "Content-Length: 2") + b"{}",
    "ten megabytes of headers": head(*(f"X-{i}: " + "a" * 1000 for i in range(10_000)), "Content-Length: 2") + b"{}",
    "a header without a name": head(": x", "Content-Length: 2") + b"{}",
    "a folded header": head("X-A: a\r\n b", "Content-Length: 2") + b"{}",
    "a negative length": head("Content-Length: -1") + b"{}",
    "a length of words": head("Content-Length: many") + b"{}",
    "a length beyond 64 bits": head("Content-Length: 99999999999999999999999") + b"{}",
    "two lengths": head("Content-Length: 2", "Content-Length: 3") + b"{}",
    "length and chunks": head("Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunks of no size": head("Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
    "a chunk beyond 64 bits": head("Transfer-Encoding: chunked") + b"fffffffffffffffff\r\n{}",
    "a coding that is none": head("Transfer-Encoding: gzip, chunked") + b"2\r\n{}\r\n0\r\n\r\n",
}


@pytest.fixture
async def url(services: FakeServices) -> AsyncIterator[str]:
    async with serving(services, services.memory) as url:
        yield url


async def test_requests_that_are_no_http(url: str, services: FakeServices) -> None:
    for name, request in RAW.items():
        answer = await exchange(url, request)
        assert answer == b"" or 400 <= status(answer) < 500, (name, answer[:200])
        await assert_working(url)
    assert not services.memory.jobs


def impatient() -> AppSettings:
    settings = shapes_settings()
    return settings.model_copy(update={"ingress": settings.ingress.model_copy(update={"body_timeout_s": 0.2})})


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_that_never_ends_is_answered_and_cut_off(framing: str) -> None:
    services = FakeServices(impatient())
    async with serving(services, services.memory) as url:
        answer = await exchange(url, head(framing), b"1\r\n{\r\n" if "chunked" in framing else b"{", until_closed=True)
        assert status(answer) == 408
        assert b"connection: close" in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        await assert_working(url)
    assert not services.memory.jobs


async def test_a_hundred_slow_bodies_keep_nobody_else_out() -> None:
    services = FakeServices(impatient())
    async with serving(services, services.memory) as url:
        slow = asyncio.gather(*(exchange(url, head("Content-Length: 9"), b"{", until_closed=True) for _ in range(100)))
        await assert_working(url)
        assert {status(answer) for answer in await slow} == {408}


@pytest.mark.parametrize("framing", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
async def test_a_body_too_large_is_cut_off(url: str, framing: str) -> None:
    piece = b" " * MEGABYTE
    chunk = f"{MEGABYTE:x}\r\n".encode() + piece + b"\r\n" if "chunked" in framing else piece
    answer = await exchange(url, head(framing), *[chunk] * 100, until_closed=True)
    # A client that sends on may find the connection reset before it has read the answer.
    assert answer == b"" or status(answer) == 413
    await assert_working(url)
