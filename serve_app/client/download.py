"""Downloads of finished files: into a hidden part file first, taken up where it ended, checked, then renamed."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

import httpx

from serve_app.client.errors import ClientError, LocalFileError, RefusedError
from serve_app.client.http import Client, Patience, video_path

Variant = Literal["video", "thumbnail", "spritesheet", "preview"]
SUFFIX: dict[Variant, str] = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".webp", "preview": ".webp"}

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_TAG = re.compile(r'"[!#-~]{1,100}"')
_RANGE_NOT_WITHIN_FILE = 416

# done, total in bytes; the total is None where the server does not tell it.
TellBytes = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Part:
    """What is there of a file. tag: the ETag of the file that it is a part of, '' where it had none."""

    path: Path
    tag: str

    @property
    def resume_at(self) -> int:
        """The last byte is asked for again: so a part that is whole already has an answer too."""
        return max(0, self.path.stat().st_size - 1) if self.tag else 0


def part_path(target: Path, video_id: str, tag: str) -> Path:
    """Where a part of `target` is kept; the name holds the ETag, so that a later run knows what it is a part of."""
    return target.with_name(f".{video_id}.{quote(tag, safe='')}{target.suffix}.part")


def find_part(target: Path, video_id: str) -> Part | None:
    """A part that an earlier run left, if there is one."""
    start, end = f".{video_id}.", f"{target.suffix}.part"
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
    tell: TellBytes = lambda done, total: None,
    before_rename: Callable[[int], None] = lambda size: None,
) -> int:
    """Write a file of a video to `target`, whole or not at all; returns its size in bytes.

    Args:
        before_rename: is called with the size when all bytes are on disk, under another name yet.

    Raises:
        RefusedError: there is no such file, or not yet.
        UnreachableError: the server went away; what came is kept for the next call.
        LocalFileError: the file cannot be written.
    """
    patience, query = client.patience(), {"variant": str(variant)}
    while True:
        try:
            part = await _fetch(client, video_id, target, query, tell, patience)
            size = part.stat().st_size
            before_rename(size)
            os.replace(part, target)
            return size
        except httpx.TransportError as error:
            failure: ClientError = client.unreachable(error)
        except RefusedError as error:
            if not error.passing:
                raise
            failure = error
        except OSError as error:
            raise LocalFileError(f"cannot write {str(target)!r}: {error.strerror or error}") from None
        # It may be the store, to which a signed link leads, that cannot be reached from here.
        query["redirect"] = "false"
        await patience.after(failure)


async def _fetch(
    client: Client, video_id: str, target: Path, query: dict[str, str], tell: TellBytes, patience: Patience
) -> Path:
    """Fetch what is missing; returns the part, which is whole now."""
    begun = find_part(target, video_id)
    headers = {"Range": f"bytes={begun.resume_at}-", "If-Range": begun.tag} if begun and begun.tag else {}
    try:
        async with client.stream(f"{video_path(video_id)}/content", headers, query) as response:
            start, total = _extent(response)
            # Only what goes beyond what was there is progress: a file that always breaks off is not tried for ever.
            known = 0 if begun is None else begun.path.stat().st_size
            part = part_path(target, video_id, response.headers.get("etag", ""))
            if begun is not None and (start == 0 or begun.path != part):
                begun.path.unlink()
            await _write(response, part, start, total, tell, lambda size: patience.renew() if size > known else None)
            return part
    except RefusedError as error:
        if error.status != _RANGE_NOT_WITHIN_FILE or begun is None:
            raise
        begun.path.unlink()
        raise httpx.RemoteProtocolError("the part on disk is longer than the file") from None


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """Where the answer's bytes begin in the file, and the file's size. Raises httpx.RemoteProtocolError."""
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if told is None:
            raise httpx.RemoteProtocolError("a part of the file came without a Content-Range that says which")
        return int(told[1]), int(told[2])
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdigit() else None


async def _write(
    response: httpx.Response,
    part: Path,
    start: int,
    total: int | None,
    tell: TellBytes,
    grown: Callable[[int], None],
) -> None:
    """Write the answer's bytes from `start` on. Raises httpx.RemoteProtocolError if the file is not whole then."""
    with part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        tell(start, total)
        async for chunk in response.aiter_raw():
            file.write(chunk)
            grown(file.tell())
            tell(file.tell(), total)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if total is not None and size != total:
        raise httpx.RemoteProtocolError(f"{size} of {total} bytes came")
