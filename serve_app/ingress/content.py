"""Sends a finished video or a picture of it: whole, in parts, or not at all when the client has it.

Where clients reach the object store, it sends them there instead, with a signed link. The preview of a video that is
being sampled comes from the registry, whole.

The finished videos, as the ingress hands them out: by job and variant, whole or in byte ranges.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from email.utils import format_datetime
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from deployments.keys import Variant, video_key
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectInfo, ObjectStore
from serve_app.access.tenants import Caller
from serve_app.errors import NotFoundError, RangeNotWithinFileError, VideoNotReadyError, quote
from serve_app.ingress.authentication import AuthenticatedCaller
from serve_app.ingress.services import Services, services_of
from serve_app.jobs import Job, JobState
from serve_app.openapi.media import content_docs

ContentVariant = Literal["video", "thumbnail", "spritesheet", "preview"]

FILE_SUFFIX: dict[Variant, str] = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".sprites.webp"}
# A video never changes under its id, but it may be private.
CACHE_CONTROL = "private, max-age=31536000, immutable"


router = APIRouter(tags=["OpenAI"])

GET_DOCS: dict[str, Any] = {"response_class": Response, **content_docs(get=True)}
HEAD_DOCS: dict[str, Any] = {"response_class": Response, **content_docs(get=False)}


@router.get("/v1/videos/{video_id}/content", **GET_DOCS)
@router.head("/v1/videos/{video_id}/content", name="probe_download_content", **HEAD_DOCS)
async def download_content(
    request: Request,
    caller: AuthenticatedCaller,
    video_id: str,
    variant: Annotated[ContentVariant, Query(description="which file, or the newest preview")] = "video",
    redirect: Annotated[
        bool, Query(description="whether to answer with a signed link where the store can be reached")
    ] = True,
) -> Response:
    """Download the mp4, poster or spritesheet of a completed video, or the newest preview of one being sampled.

    The files take Range, If-Range and If-None-Match; the preview is sent whole.
    """
    services = services_of(request)
    if variant == "preview":
        return await _send_preview(services, caller, request, video_id)
    _check_completed(await services.newest_job(video_id, caller))
    info = await services.storage.stat_video(video_id, variant)
    if info is None:
        raise NotFoundError(_no_file(variant), "video_id", "content_not_found")
    filename = f"{video_id}{FILE_SUFFIX[variant]}"
    headers = _headers(info, filename)
    if _client_has_it(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if redirect and request.method == "GET":
        link = services.storage.signed_link(video_id, variant, filename, info.content_type)
        if link is not None:
            # The link is a key to the video until it expires: no cache may keep it.
            return Response(status_code=307, headers={"Location": link, "Cache-Control": "no-store"})
    return await _send_file(services, request, video_id, variant, info, headers)


async def _send_file(
    services: Services, request: Request, video_id: str, variant: Variant, info: ObjectInfo, headers: dict[str, str]
) -> Response:
    part = _part(request, headers, info.size)
    offset, length = part or (0, info.size)
    headers["Content-Length"] = str(length)
    headers["Content-Type"] = info.content_type
    if request.method == "HEAD":
        return Response(headers=headers)
    if part is not None:
        headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{info.size}"
    chunks = services.storage.stream_video(video_id, variant, offset, length)
    return await _begun(chunks, 200 if part is None else 206, headers)


def _no_file(variant: Variant) -> str:
    if variant == "spritesheet":
        return "This video has no spritesheet: it was made before there were any, or its files are gone."
    return f"The {variant} of this video is gone."


async def _send_preview(services: Services, caller: Caller, request: Request, video_id: str) -> Response:
    job = await services.job(video_id, caller)
    preview = await services.preview(job)
    if preview is None:
        why = _no_preview(job, services.settings.sampling.preview_every)
        raise NotFoundError(why, "video_id", "preview_not_ready")
    headers = {"Cache-Control": "no-store", "Content-Length": str(len(preview)), "Content-Type": "image/webp"}
    return Response(b"" if request.method == "HEAD" else preview, headers=headers)


def _no_preview(job: Job, every: int) -> str:
    if job.final:
        return f"The video is {job.state}; it has previews only while it is sampled."
    if every == 0:
        return "Previews are turned off on this server (sampling.preview_every is 0)."
    return f"The video is {job.state} and has no preview now; while it is sampled, one is made every {every} steps."


def _check_completed(job: Job) -> None:
    if job.state is JobState.COMPLETED:
        return
    if not job.final:
        raise VideoNotReadyError(
            f"The video is {job.state}, {job.progress:.0%} done; ask again when its status is completed.", "video_id"
        )
    code, why = (job.error.code, job.error.message) if job.error else (str(job.state), "it has no file")
    # OpenAI's clients repeat a 409 unless this header says that it is in vain.
    headers = {"x-should-retry": "false"}
    raise VideoNotReadyError(f"The video is {job.state}: {why}", "video_id", code, headers)


def _headers(info: ObjectInfo, filename: str) -> dict[str, str]:
    headers = {
        "ETag": f'"{info.etag}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": CACHE_CONTROL,
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    if info.modified is not None:
        headers["Last-Modified"] = format_datetime(info.modified, usegmt=True)
    return headers


def _client_has_it(request: Request, etag: str) -> bool:
    """RFC 9110, 13.1.2: any of the listed tags, compared weakly."""
    listed = request.headers.get("if-none-match", "")
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in listed.split(","))


def _part(request: Request, headers: dict[str, str], size: int) -> tuple[int, int] | None:
    """Offset and length of the bytes asked for; None for the whole file.

    RFC 9110, 13.1.5 and 14.2: Range counts for GET only, and only if If-Range names the file as it is now.
    """
    same_file = request.headers.get("if-range") in (None, headers["ETag"], headers.get("Last-Modified"))
    asked = request.headers.get("range")
    return parse_range(asked, size) if request.method == "GET" and same_file else None


class _FileResponse(StreamingResponse):
    """Frees the store's connection also when the client stops reading early."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], status_code: int, headers: dict[str, str]) -> None:
        super().__init__(chunks, status_code, headers)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A video player leaves a download whenever its user seeks: no error.
        with suppress(ClientDisconnect):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._chunks):
            await super().stream_response(send)


async def _begun(source: AsyncIterator[bytes], status: int, headers: dict[str, str]) -> Response:
    """Read the first chunk before the answer begins, while an error can still have a status of its own."""
    generator = cast(AsyncGenerator[bytes, None], source)
    first = await anext(generator, b"")

    async def chunks() -> AsyncGenerator[bytes, None]:
        async with aclosing(generator):
            yield first
            async for chunk in generator:
                yield chunk

    return _FileResponse(chunks(), status, headers)


_ONE_RANGE = re.compile(r"bytes=\s*(?:(\d+)-(\d*)|-(\d+))\s*", re.IGNORECASE | re.ASCII)
# Longer numbers exceed every file; int() of a very long one is slow.
_MAX_DIGITS = 18


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
        return await self._store.stat(video_key(job_id, variant))

    def stream_video(
        self, job_id: str, variant: Variant, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Bytes offset to offset + length, to the end without length, in chunks."""
        return self._store.stream(video_key(job_id, variant), offset, length)

    def signed_link(self, job_id: str, variant: Variant, filename: str, content_type: str) -> str | None:
        """Where clients get the file from the store itself, without keys, for `storage.signed_link_s`.

        None without `storage.public_endpoint`: then clients cannot reach the store. Asks nothing of the store.
        """
        if not self._public:
            return None
        return self._store.presigned_get(video_key(job_id, variant), self._link_s, filename, content_type)


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
            f"The range {quote(header)} holds no byte of the file, which has {size} bytes.",
            "Range",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, length


def _number(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= _MAX_DIGITS else 10**_MAX_DIGITS
