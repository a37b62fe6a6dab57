"""Reads a request's body within limits: JSON, multipart/form-data or a URL-encoded form, into named fields."""

import asyncio
import json
import re
from codecs import BOM_UTF8
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.requests import ClientDisconnect

from serve_app.errors import (
    BodyTooLargeError,
    Described,
    InvalidRequestError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
    quote,
)

JSON = "application/json"
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
CONTENT_TYPES = (JSON, MULTIPART, URLENCODED)

MAX_PARTS = 100
# Far more than any field takes, and far less than what Python needs long for.
MAX_DIGITS = 1000
# So much of a body that is too long is read and dropped: a client that is cut off while it sends may never see the
# answer, and its next request on the connection fails. One that announces more would be cut off anyway, and one that
# waits to be told to send (Expect) has sent nothing yet: both are answered before the body is read.
MAX_DISCARDED_BYTES = 16_000_000
# For an answer before the end of the body: what the client goes on to send must not be taken for a new request.
_CLOSE = {"Connection": "close"}


class Form(dict[str, object]):
    """Fields of a form: values are text, or an UploadedFile."""


class UploadedFile(Described):
    """Stands for a file part of a multipart body where the API takes text."""

    described = "a file"


async def read_fields(request: Request, max_bytes: int, timeout_s: float | None = None) -> dict[str, object]:
    """The body's fields, unchecked. Where two have one name, the last one counts.

    Args:
        max_bytes: longest body.
        timeout_s: time in which the whole body must arrive; None waits for ever.

    Returns:
        A Form if the body is one: then every value is text.

    Raises:
        UnsupportedMediaTypeError: the content type is none of CONTENT_TYPES, or not in UTF-8, or it is compressed.
        BodyTooLargeError: the body is longer than max_bytes.
        RequestTimeoutError: the body is not whole after timeout_s.
        InvalidRequestError: the body is not what its content type says.
    """
    kind, options = _content_type(request.headers.get("content-type", ""))
    _check_encoding(request.headers.getlist("content-encoding"))
    body = await _read(request, max_bytes, timeout_s)
    if kind == JSON:
        return _parse_json(body)
    if kind == MULTIPART:
        return _parse_multipart(body, options.get("boundary"))
    return _parse_urlencoded(body)


async def read_text(
    request: Request, content_types: Sequence[str], max_bytes: int, timeout_s: float | None = None
) -> str:
    """The body as the text that it is, without a byte order mark.

    Args:
        content_types: that are read.

    The others, and what is raised, as of `read_fields`.
    """
    _content_type(request.headers.get("content-type", ""), content_types)
    _check_encoding(request.headers.getlist("content-encoding"))
    return _text((await _read(request, max_bytes, timeout_s)).removeprefix(BOM_UTF8))


def content_type_of(request: Request) -> str:
    """Of the body, without its options; empty where there is none."""
    kind, _ = parse_options_header(request.headers.get("content-type", ""))
    return kind.decode("latin-1")


def _content_type(header: str, allowed: Sequence[str] = CONTENT_TYPES) -> tuple[str, dict[str, str]]:
    raw_kind, raw_options = parse_options_header(header)
    kind = raw_kind.decode("latin-1")
    options = {k.decode("latin-1"): v.decode("latin-1") for k, v in raw_options.items()}
    if kind not in allowed:
        given = quote(header) if header else "none"
        raise UnsupportedMediaTypeError(f"The Content-Type is {given}; it must be {', '.join(allowed)}.")
    charset = options.get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaTypeError(f"The charset is {quote(charset)}; it must be utf-8.")
    return kind, options


def _check_encoding(headers: list[str]) -> None:
    given = ", ".join(headers)
    if given.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaTypeError(
            f"The Content-Encoding is {quote(given)}; send the body as it is, without compression."
        )


async def _read(request: Request, max_bytes: int, timeout_s: float | None) -> bytes:
    _check_announced(request, max_bytes)
    received = _LimitedBody(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                received.add(chunk)
    except TimeoutError:
        if received.too_large:
            raise _too_large(max_bytes, _CLOSE) from None
        raise RequestTimeoutError(
            f"The body was not whole after {timeout_s:g} s; send it faster, or smaller.", headers=_CLOSE
        ) from None
    except ClientDisconnect:
        raise _bad_body("The client went away before its request was whole.") from None
    if received.too_large:
        raise _too_large(max_bytes)
    return bytes(received.data)


def _check_announced(request: Request, max_bytes: int) -> None:
    """Raises BodyTooLargeError for a body that is not even to be discarded, by the length that it is announced with."""
    length = request.headers.get("content-length", "")
    # The HTTP server refuses what is no number.
    announced = int(length) if length.isascii() and length.isdigit() and len(length) <= MAX_DIGITS else 0
    waits = request.headers.get("expect", "").strip().lower() == "100-continue"
    if announced > max_bytes + (0 if waits else MAX_DISCARDED_BYTES):
        raise _too_large(max_bytes, _CLOSE)


class _LimitedBody:
    """The first max_bytes of a body, and how many bytes there are in all."""

    def __init__(self, max_bytes: int) -> None:
        self.data = bytearray()
        self._max_bytes = max_bytes
        self._count = 0

    @property
    def too_large(self) -> bool:
        return self._count > self._max_bytes

    def add(self, chunk: bytes) -> None:
        self._count += len(chunk)
        if not self.too_large:
            self.data += chunk
        elif self._count > self._max_bytes + MAX_DISCARDED_BYTES:
            raise _too_large(self._max_bytes, _CLOSE)


def _too_large(max_bytes: int, headers: dict[str, str] | None = None) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is longer than the {max_bytes} bytes that are allowed.", headers=headers)


def _parse_json(body: bytes) -> dict[str, object]:
    try:
        # RFC 8259, 8.1: a byte order mark may be ignored, and Windows' tools write one.
        fields: Any = json.loads(
            _text(body.removeprefix(BOM_UTF8)), parse_constant=_refuse_constant, parse_int=_integer
        )
    except RecursionError:
        raise _bad_body("The body is nested too deeply; it must be one flat JSON object.") from None
    except ValueError as error:
        raise _bad_body(f"The body is not valid JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise _bad_body(f"The body is {quote(fields)}; it must be a JSON object.")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits, at most {MAX_DIGITS} are read")
    return int(digits)


def _parse_multipart(body: bytes, boundary: str | None) -> Form:
    if not boundary:
        raise _bad_body(f"The Content-Type {MULTIPART} must name a boundary.")
    parts = _Parts()
    try:
        parser = FormParser(
            MULTIPART,
            parts.add_field,
            parts.add_file,
            parts.end,
            boundary=boundary.encode("latin-1"),
            config={"MAX_MEMORY_FILE_SIZE": float("inf"), "UPLOAD_ERROR_ON_BAD_CTE": True},
        )
        parser.write(_without_preamble(body, boundary))
        parser.finalize()
    except FormParserError as error:
        raise _bad_body(f"The body is not valid {MULTIPART}: {quote(str(error))}.") from None
    if not parts.ended:
        raise _bad_body(f"The body is not valid {MULTIPART}: it ends before its closing boundary.")
    return parts.fields


def _without_preamble(body: bytes, boundary: str) -> bytes:
    """The body from its first boundary on: what stands before it means nothing, nor does space behind it.

    RFC 2046, 5.1.1. The parser takes what stands behind the last boundary, and nothing but line ends before the first.
    """
    line = b"--" + boundary.encode("latin-1")
    if body.startswith(line + b"\r\n"):
        return body
    first = re.search(rb"(?:\A|\r\n)" + re.escape(line) + rb"(--)?[ \t]*(?:\r\n|\Z)", body)
    # One that closes before any part is left to the parser.
    return body if first is None or first[1] else line + b"\r\n" + body[first.end() :]


class _Parts:
    """Collects the parts of a multipart body as the parser finds them."""

    def __init__(self) -> None:
        self.fields = Form()
        self.ended = False
        self._count = 0

    def add_field(self, field: Field) -> None:
        self._add(field.field_name, _text(field.value or b""))

    def add_file(self, file: File) -> None:
        file.close()
        self._add(file.field_name, UploadedFile())

    def end(self) -> None:
        self.ended = True

    def _add(self, name: bytes | None, value: object) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise _bad_body(f"The body has more than {MAX_PARTS} parts.")
        self.fields[_text(name or b"")] = value


def _parse_urlencoded(body: bytes) -> Form:
    try:
        pairs = parse_qsl(
            _text(body), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_PARTS
        )
    except ValueError as error:
        raise _bad_body(f"The body is not valid {URLENCODED}: {quote(str(error))}.") from None
    return Form(pairs)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad_body(f"The body is not UTF-8 at byte {error.start} of its text.") from None


def _bad_body(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="invalid_body")
