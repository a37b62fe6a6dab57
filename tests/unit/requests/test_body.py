import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import BodyTooLargeError, InvalidRequestError, RequestTimeoutError, UnsupportedMediaTypeError
from serve_app.requests.body import MAX_DISCARDED_BYTES, Form, UploadedFile, read_fields

BOUNDARY = "multipart/form-data; boundary=xyz"


async def read(body: bytes | list[bytes], content_type: str | None, max_bytes: int = 10_000) -> dict[str, object]:
    chunks = [body] if isinstance(body, bytes) else body
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    return await read_fields(Request({"type": "http", "headers": headers}, receive), max_bytes)


def part(name: str, value: bytes, extra: str = "", headers: str = "") -> bytes:
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n{headers}\r\n'
    return head.encode() + value + b"\r\n"


async def test_json() -> None:
    body = b'{"prompt": "\xc3\xa9", "seed": 1, "seed": 2}'
    assert await read(body, "application/json; charset=UTF-8") == {"prompt": "é", "seed": 2}


async def test_a_byte_order_mark_is_no_part_of_json() -> None:
    assert await read(b'\xef\xbb\xbf{"prompt": "\xef\xbb\xbfx"}', "application/json") == {"prompt": "\ufeffx"}


async def test_a_body_in_pieces() -> None:
    assert await read([b'{"pro', b'mpt": ', b'"x"}'], "application/json") == {"prompt": "x"}


async def test_multipart() -> None:
    body = part("prompt", "é".encode()) + part("seed", b"5") + b"--xyz--\r\n"
    fields = await read(body, BOUNDARY)
    assert fields == {"prompt": "é", "seed": "5"}
    assert isinstance(fields, Form)


PROMPT = part("prompt", b"a red circle\r\n--xy") + b"--xyz--"


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"This is a message in MIME format.\r\n",
        b"--xyza\r\n",
        b"-\r\n",
        b"--xyz \r",
        b"\xff\x00\r\n",
    ]
    + [b"a --xyz\r\n", b"--xyz: see below\r\n" * 1000],
)
@pytest.mark.parametrize(
    "after", [b"", b"\r\n", b"\r\nThe end.", b"\r\n" + part("prompt", b"another") + b"--xyz--\r\n"]
)
async def test_what_stands_around_the_parts_means_nothing(before: bytes, after: bytes) -> None:
    if before == b"--xyz \r":
        before += b"\r\n"  # no boundary: its line does not end
    assert await read(before + PROMPT + after, BOUNDARY, 100_000) == {"prompt": "a red circle\r\n--xy"}


async def test_boundaries_with_signs_and_padding() -> None:
    for boundary in ("a.b+c(d)", "----WebKitFormBoundary7", "'()+_,-./:=?", "a b"):
        body = (
            f'preamble\r\n--{boundary} \t\r\nContent-Disposition: form-data; name="seed"\r\n\r\n5\r\n--{boundary}--\r\n'
        )
        for whole in (body, body.removeprefix("preamble\r\n")):
            assert await read(whole.encode(), f'multipart/form-data; boundary="{boundary}"') == {"seed": "5"}


async def test_a_file_is_only_named() -> None:
    body = part("input_reference", b"\xff\xd8", '; filename="a.jpg"') + b"--xyz--\r\n"
    assert isinstance((await read(body, BOUNDARY))["input_reference"], UploadedFile)


async def test_url_encoded() -> None:
    fields = await read(b"prompt=a+red%20circle&seed=", "application/x-www-form-urlencoded")
    assert fields == Form(prompt="a red circle", seed="")


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/jsonx", "*/*", "application/json; charset=utf-16"]
)
async def test_other_content_types(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        await read(b"{}", content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"x"',
        b"null",
        b"\xff",
        b'{"seed": NaN}',
        b'{"seed": -Infinity}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"seed": -' + b"9" * 1000 + b"}",
        b"[" * 9000,
        b'{"a":' * 1800,
        b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "x"}',
        b'{"prompt": "x"}\xef\xbb\xbf',
        b"\xef\xbb\xbf",
        '{"prompt": "x"}'.encode("utf-16"),
    ],
)
async def test_bad_json(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await read(body, "application/json")
    assert caught.value.code == "invalid_body"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (part("prompt", b"x") + b"--xyz--", "multipart/form-data"),
        (part("prompt", b"x"), BOUNDARY),
        (b"", BOUNDARY),
        (b"nonsense", BOUNDARY),
        (b"nonsense" + part("prompt", b"x") + b"--xyz--\r\n", BOUNDARY),
        (b"nonsense\r\n--xyza\r\n\r\n", BOUNDARY),
        (b"nonsense\r\n" + part("prompt", b"x") + b"--xyza--\r\n", BOUNDARY),
        (part("prompt", b"\xff") + b"--xyz--\r\n", BOUNDARY),
        (part("prompt", b"x", headers="Content-Transfer-Encoding: gzip\r\n") + b"--xyz--\r\n", BOUNDARY),
        (part("prompt", b"!", headers="Content-Transfer-Encoding: base64\r\n") + b"--xyz--\r\n", BOUNDARY),
        (b"--xyz\r\n\r\nx\r\n--xyz--\r\n", BOUNDARY),
        (part("a", b"") * 101 + b"--xyz--\r\n", BOUNDARY),
        (b"prompt", "application/x-www-form-urlencoded"),
        (b"prompt=%ff", "application/x-www-form-urlencoded"),
        (b"&".join([b"a=1"] * 101), "application/x-www-form-urlencoded"),
    ],
)
async def test_bad_forms(body: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await read(body, content_type)
    assert caught.value.code == "invalid_body"


async def test_the_limit_holds_while_reading() -> None:
    served = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal served
        while True:
            served += 1
            yield b" " * 1_000_000

    app = FastAPI()

    @app.post("/")
    async def route(request: Request) -> str:
        try:
            await read_fields(request, 10_000)
        except BodyTooLargeError:
            return "too large"
        return "read"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/", content=endless(), headers={"content-type": "application/json"})
    assert answer.json() == "too large"
    assert served == 17


LIMIT = 10_000
FAR_BEYOND = LIMIT + MAX_DISCARDED_BYTES


def announcing(length: object, *pieces: bytes, expect: str | None = None) -> Request:
    """A request with a Content-Length, of which these pieces can be read, and no more."""
    request = arriving(*pieces, whole=True)
    request.scope["headers"] += [(b"content-length", str(length).encode())]
    request.scope["headers"] += [] if expect is None else [(b"expect", expect.encode())]
    return request


@pytest.mark.parametrize(
    ("length", "expect"),
    [(FAR_BEYOND + 1, None), (10**18, None), ("9" * 100, None), (LIMIT + 1, "100-continue"), (10**9, " 100-Continue ")],
)
async def test_a_body_announced_too_large_is_refused_unread(length: object, expect: str | None) -> None:
    with pytest.raises(BodyTooLargeError) as caught:
        await read_fields(announcing(length, expect=expect), LIMIT)
    assert caught.value.headers == {"Connection": "close"}


@pytest.mark.parametrize("length", [LIMIT + 1, FAR_BEYOND])
async def test_a_body_that_is_a_little_too_large_is_read_to_its_end(length: int) -> None:
    """Who is sending gets the answer, not a reset, and the connection can be used again."""
    request = announcing(length, *[b" " * 5000] * 3)
    with pytest.raises(BodyTooLargeError) as caught:
        await read_fields(request, LIMIT)
    assert caught.value.headers == {}
    assert request.scope["left"] == []


@pytest.mark.parametrize("length", [2, LIMIT, "", "-1", "x", "１", "1.5", "9" * 5000, "+3"])
@pytest.mark.parametrize("expect", [None, "100-continue", "a miracle"])
async def test_other_announcements_are_read(length: object, expect: str | None) -> None:
    assert await read_fields(announcing(length, b"{}", expect=expect), LIMIT) == {}


async def test_a_body_of_the_limit_is_read() -> None:
    body = b'{"prompt": "x"}'
    assert await read(body, "application/json", len(body))
    with pytest.raises(BodyTooLargeError):
        await read(body, "application/json", len(body) - 1)


def arriving(*chunks: bytes, encoding: bytes | None = None, whole: bool = False) -> Request:
    """A request of which these pieces arrive, and then its end, if it is whole, or nothing more."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages += [{"type": "http.request", "body": b"", "more_body": False}] if whole else []
    headers = [(b"content-type", b"application/json")]
    headers += [] if encoding is None else [(b"content-encoding", encoding)]

    async def receive() -> dict[str, object]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return Request({"type": "http", "headers": headers, "left": messages}, receive)


async def test_a_body_that_never_ends_is_given_up() -> None:
    with pytest.raises(RequestTimeoutError, match=r"not whole after 0\.05 s") as caught:
        await read_fields(arriving(b'{"prompt":', b' "x"'), 1000, 0.05)
    assert (caught.value.status, caught.value.headers) == (408, {"Connection": "close"})


async def test_a_body_too_large_that_never_ends_is_too_large() -> None:
    with pytest.raises(BodyTooLargeError) as caught:
        await read_fields(arriving(b" " * 1001), 1000, 0.05)
    assert caught.value.headers == {"Connection": "close"}


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"deflate, gzip", b"x", b"\xff"])
async def test_a_compressed_body_is_refused_unread(encoding: bytes) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="without compression"):
        await read_fields(arriving(encoding=encoding), 1000)


async def test_the_encoding_that_is_none() -> None:
    with pytest.raises(RequestTimeoutError):
        await read_fields(arriving(encoding=b"Identity"), 1000, 0.01)


async def test_a_number_of_the_most_digits_is_read() -> None:
    assert await read(b'{"seed": ' + b"9" * 1000 + b"}", "application/json") == {"seed": 10**1000 - 1}


@given(st.binary(max_size=300), st.sampled_from([BOUNDARY, "application/json", "application/x-www-form-urlencoded"]))
async def test_any_bytes_are_fields_or_a_refusal(body: bytes, content_type: str) -> None:
    for whole in (body, b"--xyz\r\n" + body, part("prompt", b"x") + body + b"\r\n--xyz--\r\n"):
        try:
            await read(whole, content_type)
        except InvalidRequestError as error:
            assert error.message.encode("utf-8")


@given(st.text(max_size=60))
async def test_any_content_type_is_read_or_refused(content_type: str) -> None:
    header = content_type.encode("utf-8").decode("latin-1")
    for whole in (header, "multipart/form-data;" + header, "application/json;" + header):
        try:
            await read(b"{}", whole)
        except InvalidRequestError as error:
            assert error.message.encode("utf-8")
