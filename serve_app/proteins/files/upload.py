"""Reads a FASTA file of any size from the body of a request, line by line, and stores it in parts as it comes."""

import asyncio
import hashlib
import zlib
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from deployments.keys import asked_part_key, work_prefix
from deployments.storage.object_store import Bucket
from serve_app.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
    quote,
)
from serve_app.proteins.fasta import FastaReader
from serve_app.proteins.files.parts import FilePart, PartCutter
from serve_app.proteins.requests import MAX_TEXT
from serve_app.requests.body import content_type_of

FASTA_TYPES = ("text/x-fasta", "application/x-fasta", "chemical/seq-aa-fasta", "text/plain", "application/octet-stream")
# For an answer before the end of the body: what the client goes on to send must not be taken for a new request.
_CLOSE = {"Connection": "close"}
_GZIP = zlib.MAX_WBITS | 16
_UNPACKED = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that lies in storage whole."""

    sequences: int
    parts: int
    tokens: int  # of all passes of the model, about
    sha256: str  # of the file, unpacked


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Of an upload."""

    max_bytes: int  # unpacked
    max_sequences: int
    silence_s: float  # between two pieces of the body


async def store_file(
    request: Request, store: Bucket, job_id: str, cutter: PartCutter, limits: FileLimits
) -> StoredFile:
    """Store the body as the parts of the job. If it fails, what was stored is deleted again.

    Raises:
        UnsupportedMediaTypeError: it is no FASTA, or compressed in another way than gzip.
        InvalidRequestError: it is no FASTA, is not in UTF-8 or damaged, or holds no sequence or too many.
        BodyTooLargeError: it is longer than limits.max_bytes.
        RequestTimeoutError: nothing came for limits.silence_s.
        WorkerError: the store is away or refuses.
    """
    kind = content_type_of(request)
    if kind not in FASTA_TYPES:
        given = quote(kind) if kind else "none"
        raise UnsupportedMediaTypeError(f"The Content-Type is {given}; it must be {', '.join(FASTA_TYPES)}.")
    digest = hashlib.sha256()
    try:
        reader = FastaReader(MAX_TEXT)
        async for lines in _lines(_unpacked(request, limits), digest):
            for line in lines:
                if (entry := reader.take(line)) is None:
                    continue
                await _put(store, job_id, cutter.parts, cutter.add(entry))
                _check_count(cutter, limits)
        if (entry := reader.finish()) is not None:
            await _put(store, job_id, cutter.parts, cutter.add(entry))
            _check_count(cutter, limits)
        await _put(store, job_id, cutter.parts, cutter.finish())
        if not cutter.sequences:
            raise InvalidRequestError(
                "Invalid FASTA: it holds no sequence; write a line '>name' and the residues below it.",
                "fasta",
                "fasta_invalid",
            )
    except BaseException:
        await asyncio.shield(delete_file(store, job_id))
        raise
    return StoredFile(cutter.sequences, cutter.parts, cutter.tokens, digest.hexdigest())


async def delete_file(store: Bucket, job_id: str) -> None:
    """Delete the parts of a file that no job needs."""
    keys = [listed.key async for page in store.list_pages(work_prefix(job_id)) for listed in page]
    await store.delete_many(keys)


async def _put(store: Bucket, job_id: str, number: int, part: FilePart | None) -> None:
    """Store a part that was cut off. number: of parts that were cut off before it."""
    if part is not None:
        data = await asyncio.to_thread(part.to_json)
        await store.put(asked_part_key(job_id, number), data, "application/json")


def _check_count(cutter: PartCutter, limits: FileLimits) -> None:
    if cutter.sequences > limits.max_sequences:
        raise InvalidRequestError(
            f"The file holds more than {limits.max_sequences} sequences; send it in several files.",
            "fasta",
            "file_too_large",
        )


async def _unpacked(request: Request, limits: FileLimits) -> AsyncIterator[bytes]:
    """The body in pieces, unpacked if it is gzip."""
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise UnsupportedMediaTypeError(f"The Content-Encoding is {quote(encoding)}; it must be gzip or none.")
    left = limits.max_bytes
    received = _received(request, limits.silence_s)
    async for piece in _gunzipped(received) if encoding == "gzip" else received:
        left -= len(piece)
        if left < 0:
            raise BodyTooLargeError(
                f"The file is longer than the {limits.max_bytes} bytes that are allowed.", headers=_CLOSE
            )
        yield piece


async def _received(request: Request, silence_s: float) -> AsyncIterator[bytes]:
    pieces = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(silence_s):
                piece = await anext(pieces, None)
        except TimeoutError:
            raise RequestTimeoutError(
                f"Nothing of the file came for {silence_s:g} s; send it again.", headers=_CLOSE
            ) from None
        except ClientDisconnect:
            raise InvalidRequestError("The client went away before its file was whole.") from None
        if piece is None:
            return
        yield piece


async def _gunzipped(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Of all members, one after the other: bgzip writes many. No piece is longer than _UNPACKED, whatever it holds."""
    member = zlib.decompressobj(_GZIP)
    is_empty = True
    async for packed in pieces:
        while packed:
            is_empty = False
            if member.eof:
                member = zlib.decompressobj(_GZIP)
            try:
                piece = await asyncio.to_thread(member.decompress, packed, _UNPACKED)
            except zlib.error as error:
                raise _damaged(str(error)) from None
            packed = member.unused_data if member.eof else member.unconsumed_tail
            yield piece
    if not is_empty and not member.eof:
        raise _damaged("it ends too early")


async def _lines(pieces: AsyncIterator[bytes], digest: "hashlib._Hash") -> AsyncIterator[list[str]]:
    """The lines of each piece; one that goes on in the next piece comes with that one."""
    rest = b""
    is_first = True
    async for piece in pieces:
        digest.update(piece)
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        if is_first and newline:
            whole, is_first = whole.removeprefix(BOM_UTF8), False
        if len(rest) > 2 * MAX_TEXT:
            raise InvalidRequestError(
                f"Invalid FASTA: a line is longer than {2 * MAX_TEXT} bytes.", "fasta", "fasta_invalid"
            )
        if newline:
            yield _text(whole).splitlines()
    if rest:
        yield _text(rest.removeprefix(BOM_UTF8) if is_first else rest).splitlines()


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("Invalid FASTA: it is not UTF-8.", "fasta", "fasta_invalid") from None


def _damaged(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The file is no whole gzip: {why}.", "fasta", "fasta_invalid")
