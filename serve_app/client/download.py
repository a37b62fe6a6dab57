"""Downloads of finished files: into a hidden part file first, taken up where it ended, checked, then renamed.

A link stays a link, and a device or a pipe what it is: the file goes where the link leads, or through.
"""

import asyncio
import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

import httpx

from serve_app.client.errors import LocalFileError, RefusedError
from serve_app.client.http import Client, Patience, video_path

Variant = Literal["video", "thumbnail", "spritesheet", "preview"]
SUFFIX: dict[Variant, str] = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".webp", "preview": ".webp"}

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_TAG = re.compile(r'"[!#-~]{1,100}"')
_RANGE_NOT_WITHIN_FILE = 416
COPY_BYTES = 1 << 20

# Gets how many bytes are there, and how many the file has, None where the server does not send it.
OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Part:
    """What is there of a file."""

    path: Path
    tag: str  # the ETag of the file that it is a part of, '' where it had none

    @property
    def resume_at(self) -> int:
        """The first byte to ask for: the last one that is there, so that a part that is whole has an answer too."""
        return max(0, self.path.stat().st_size - 1) if self.tag else 0


def part_path(target: Path, video_id: str, tag: str) -> Path:
    """Where a part of `target` is kept; the name holds the ETag, so that a later run knows what it is a part of."""
    return target.with_name(f".{video_id}.{quote(tag, safe='')}{target.suffix}.part")


def find_part(target: Path, video_id: str) -> Part | None:
    """A part that an earlier run left, if there is one."""
    start = f".{video_id}."
    end = f"{target.suffix}.part"
    for path in target.parent.iterdir():
        if path.name.startswith(start) and path.name.endswith(end) and len(path.name) >= len(start) + len(end):
            tag = unquote(path.name[len(start) : -len(end)])
            return Part(path, tag if _TAG.fullmatch(tag) else "")
    return None


async def download(
    client: Client,
    video_id: str,
    target: Path,
    variant: Variant = "video",
    on_bytes: OnBytes = lambda done, total: None,
    before_rename: Callable[[int], None] = lambda size: None,
) -> int:
    """Write a file of a video to `target`, whole or not at all; returns its size in bytes.

    Args:
        target: a file; a link, which stays; or a device or a pipe, which is written to.
        on_bytes: is called as bytes come.
        before_rename: is called with the size when all bytes are on disk, still under another name.

    Raises:
        RefusedError: there is no such file, or not yet.
        UnreachableError: the server went away; what came is kept for the next call.
        LocalFileError: the file cannot be written.
    """
    try:
        target = target.resolve()
        through = target.exists() and not target.is_file()
    # RuntimeError: links in a circle, before Python 3.13. UnicodeError: a name that the system's encoding has not.
    except (OSError, RuntimeError, UnicodeError) as error:
        raise LocalFileError(f"cannot write {str(target)!r}: {error}") from None
    if through:
        try:
            return await download_through(
                client, video_id, lambda: os.open(target, os.O_WRONLY | os.O_NOCTTY), variant, on_bytes
            )
        except OSError as error:
            raise LocalFileError(f"cannot write {str(target)!r}: {error.strerror or error}") from None
    patience = client.patience()
    # Straight from the store, if the server has links to it: then the bytes need not pass the server.
    query = {"variant": str(variant), "redirect": "true"}
    while True:
        try:
            part = await _fetch(client, video_id, target, query, on_bytes, patience)
            size = part.stat().st_size
            before_rename(size)
            os.replace(part, target)
            return size
        except (httpx.TransportError, RefusedError) as error:
            failure = client.temporary_error(error)
        except OSError as error:
            raise LocalFileError(f"cannot write {str(target)!r}: {error.strerror or error}") from None
        # It may be the store, to which a signed link leads, that cannot be reached from here.
        query["redirect"] = "false"
        await patience.pause_after(failure)


async def download_through(
    client: Client,
    video_id: str,
    open_sink: Callable[[], int],
    variant: Variant = "video",
    on_bytes: OnBytes = lambda done, total: None,
) -> int:
    """Write a file of a video to what cannot be renamed, once all of it is here; returns its size in bytes.

    Args:
        open_sink: gives a descriptor to write to, which is closed then; it may block until
            somebody reads.

    Raises:
        OSError: of the sink; BrokenPipeError if its reader has gone.
        RefusedError, UnreachableError, LocalFileError: as of `download`.
    """
    with tempfile.TemporaryDirectory(prefix="mochi-serve-") as folder:
        part = Path(folder).resolve() / f"file{SUFFIX[variant]}"
        size = await download(client, video_id, part, variant, on_bytes)
        await _in_daemon(lambda: _copy(part, open_sink()))
        return size


def _copy(source: Path, sink: int) -> None:
    with source.open("rb") as file, open(sink, "wb", buffering=0) as out:
        while chunk := memoryview(file.read(COPY_BYTES)):
            while chunk:
                chunk = chunk[out.write(chunk) :]


async def _in_daemon(work: Callable[[], None]) -> None:
    """Run work in a thread that a process need not wait for when it ends: a pipe may have no reader for ever."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: Exception | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        failure: Exception | None = None
        try:
            work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(finish, failure)

    threading.Thread(target=run, daemon=True).start()
    await done


async def _fetch(
    client: Client, video_id: str, target: Path, query: dict[str, str], on_bytes: OnBytes, patience: Patience
) -> Path:
    """Fetch what is missing; returns the part, which is whole now."""
    old = find_part(target, video_id)
    headers = {"Range": f"bytes={old.resume_at}-", "If-Range": old.tag} if old and old.tag else {}
    try:
        async with client.stream(f"{video_path(video_id)}/content", headers, query) as response:
            start, total = _extent(response)
            old_size = 0 if old is None else old.path.stat().st_size

            def on_size(size: int) -> None:
                on_bytes(size, total)
                # Only bytes beyond the old part are progress: else a file that always breaks off is tried for ever.
                if size > old_size:
                    patience.reset()

            part = part_path(target, video_id, response.headers.get("etag", ""))
            if old is not None and (start == 0 or old.path != part):
                old.path.unlink()
            on_bytes(start, total)
            await _write(response, part, start, total, on_size)
            return part
    except RefusedError as error:
        if error.status != _RANGE_NOT_WITHIN_FILE or old is None:
            raise
        old.path.unlink()
        raise httpx.RemoteProtocolError("the part on disk is longer than the file") from None


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """Where the answer's bytes begin in the file, and the file's size. Raises httpx.RemoteProtocolError."""
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        extent = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if extent is None:
            raise httpx.RemoteProtocolError("a part of the file came without a Content-Range that says which")
        return int(extent[1]), int(extent[2])
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdigit() else None


async def _write(
    response: httpx.Response, part: Path, start: int, total: int | None, on_size: Callable[[int], None]
) -> None:
    """Write the answer's bytes from `start` on. Raises httpx.RemoteProtocolError if the file is not whole then."""
    with part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        async for chunk in response.aiter_raw():
            file.write(chunk)
            on_size(file.tell())
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if total is not None and size != total:
        raise httpx.RemoteProtocolError(f"{size} of {total} bytes came")
