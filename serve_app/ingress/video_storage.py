"""The finished videos, as the ingress hands them out: by job and variant, whole or in byte ranges."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Literal

from deployments.messages import poster_key, spritesheet_key, video_key
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectInfo, ObjectStore
from serve_app.errors import RangeNotWithinFileError
from serve_app.wording import shown

Variant = Literal["video", "thumbnail", "spritesheet"]

_KEYS: dict[Variant, Callable[[str], str]] = {
    "video": video_key,
    "thumbnail": poster_key,
    "spritesheet": spritesheet_key,
}

_ONE_RANGE = re.compile(r"bytes=\s*(?:(\d+)-(\d*)|-(\d+))\s*", re.IGNORECASE | re.ASCII)
# Longer numbers exceed every file; int() of a very long one is slow.
_MAX_DIGITS = 18


def object_key(job_id: str, variant: Variant) -> str:
    """Where the decoder wrote the variant: the mp4, or one of its pictures (WebP)."""
    return _KEYS[variant](job_id)


class VideoStorage:
    """Reads what the decoder wrote. Raises what `ObjectStore` raises."""

    def __init__(self, settings: StorageSettings) -> None:
        self._store = ObjectStore(settings)
        self._public = settings.public_endpoint is not None
        self._link_s = settings.signed_link_s

    async def ping(self) -> None:
        """Return if the store answers; raise otherwise."""
        await self._store.ping()

    async def stat_video(self, job_id: str, variant: Variant) -> ObjectInfo | None:
        """Size, ETag and content type; None when there is no such file."""
        return await self._store.stat(object_key(job_id, variant))

    def stream_video(
        self, job_id: str, variant: Variant, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Bytes offset to offset + length, to the end without length, in chunks."""
        return self._store.stream(object_key(job_id, variant), offset, length)

    def signed_link(self, job_id: str, variant: Variant, filename: str, content_type: str) -> str | None:
        """Where clients get the file from the store itself, without keys, for `storage.signed_link_s`.

        None without `storage.public_endpoint`: then clients cannot reach the store. Asks nothing of the store.
        """
        if not self._public:
            return None
        return self._store.presigned_get(object_key(job_id, variant), self._link_s, filename, content_type)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The part of a file of `size` bytes that a Range header asks for, as (start, length); RFC 9110, 14.1.2.

    None means the whole file: no header, another unit, a malformed range, or several ranges, which a server may
    answer with the whole.

    Raises:
        RangeNotWithinFileError: the range is well-formed and holds no byte of the file.
    """
    match = _ONE_RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(_number(suffix), size)
        start = size - length
    else:
        start = _number(first)
        if last and _number(last) < start:
            return None
        length = min(_number(last) + 1 if last else size, size) - start
    if length <= 0:
        raise RangeNotWithinFileError(
            f"The range {shown(header)} holds no byte of the file, which has {size} bytes.",
            "Range",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, length


def _number(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= _MAX_DIGITS else 10**_MAX_DIGITS
