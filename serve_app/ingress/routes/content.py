"""The files of a video: whole, in parts, or not at all when the client has it.

Where clients reach the object store, they may be sent there instead, with a signed link. Many follow no redirect, or
take their API key along to the store, which refuses it: unless the operator wants otherwise, a link is for who asks.
The preview of a video that is being sampled comes from the registry, whole.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from email.utils import format_datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from deployments.keys import Variant, video_key
from deployments.settings import StorageSettings
from deployments.storage.object_store import Bucket, ObjectInfo
from deployments.tracing.span import Kind
from serve_app.errors import NotFoundError, RangeNotWithinFileError, VideoNotReadyError, quote
from serve_app.ingress.authentication import AuthenticatedCaller
from serve_app.ingress.request_trace import RESPONSE_HEADER, request_trace
from serve_app.ingress.services import Services, services_of
from serve_app.jobs import Job, JobState
from serve_app.openapi.media import content_docs

ContentVariant = Literal["video", "thumbnail", "spritesheet", "preview"]

# A video never changes under its id, but it may be private.
CACHE_CONTROL = "private, max-age=31536000, immutable"

GET_DOCS: dict[str, Any] = {"response_class": Response, **content_docs(get=True)}
HEAD_DOCS: dict[str, Any] = {"response_class": Response, **content_docs(get=False)}

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/videos/{video_id}/content", **GET_DOCS)
@router.head("/v1/videos/{video_id}/content", name="probe_download_content", **HEAD_DOCS)
async def download_content(
    request: Request,
    caller: AuthenticatedCaller,
    video_id: str,
    variant: Annotated[ContentVariant, Query(description="which file, or the newest preview")] = "video",
    redirect: Annotated[
        bool | None,
        Query(
            description="whether to answer with a signed link where the store can be reached; without it, `Prefer: "
            "redirect` asks for one, and storage.redirect of the server says what is done"
        ),
    ] = None,
) -> Response:
    """Download the mp4, poster or spritesheet of a completed video, or the newest preview of one being sampled.

    The files take Range, If-Range and If-None-Match; the preview is sent whole.
    """
    services = services_of(request)
    if variant == "preview":
        return await _send_preview(services, request, await services.job(video_id, caller))
    job = await services.newest_job(video_id, caller)
    _check_completed(job)
    key = video_key(video_id, variant)
    span = request_trace(request).begin_download(job, variant)
    with span.child("store stat", {"mochi_serve.object.key": key}, Kind.CLIENT):
        info = await services.store.stat(key)
    if info is None:
        raise NotFoundError(_no_file_message(variant), "video_id", "content_not_found")
    filename = PurePosixPath(key).name
    headers = file_headers(info, filename) | {RESPONSE_HEADER: job.trace.traceparent}
    if _client_has_it(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    storage, preferred = services.settings.storage, _prefers_link(request)
    if request.method == "GET" and gets_link(storage, preferred if redirect is None else redirect):
        link = services.store.presigned_get(key, services.link_s(job), filename, info.content_type)
        # The link is a key to the video until it expires: no cache may keep it.
        applied = {"Preference-Applied": "redirect"} if preferred else {}
        return Response(status_code=307, headers={"Location": link, "Cache-Control": "no-store", **applied})
    return await send_file(services.store, request, key, info, headers)


def gets_link(storage: StorageSettings, asked: bool | None) -> bool:
    """Whether a download is a redirect to the store.

    Args:
        asked: whether the client wants a link, None if it does not say.
    """
    if storage.public_endpoint is None or storage.redirect == "never":
        return False
    return storage.redirect == "always" if asked is None else asked


def _prefers_link(request: Request) -> bool | None:
    """True if a header Prefer (RFC 7240) names `redirect`, else None: nothing is said."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    named = {preference.split(";")[0].strip().lower() for preference in preferences}
    return True if "redirect" in named else None


async def _send_preview(services: Services, request: Request, job: Job) -> Response:
    preview = await services.preview(job)
    if preview is None:
        message = _no_preview_message(job, services.settings.sampling.preview_every)
        raise NotFoundError(message, "video_id", "preview_not_ready")
    headers = {"Cache-Control": "no-store", "Content-Length": str(len(preview)), "Content-Type": "image/webp"}
    return Response(b"" if request.method == "HEAD" else preview, headers=headers)


def _no_preview_message(job: Job, every: int) -> str:
    if job.final:
        return f"The video is {job.state}; it has previews only while it is sampled."
    if every == 0:
        return "Previews are turned off on this server (sampling.preview_every is 0)."
    return f"The video is {job.state} and has no preview now; while it is sampled, one is made every {every} steps."


def _check_completed(job: Job) -> None:
    """Raises VideoNotReadyError if the job is not completed."""
    if job.state is JobState.COMPLETED:
        return
    if not job.final:
        raise VideoNotReadyError(
            f"The video is {job.state}, {job.progress:.0%} done; ask again when its status is completed.", "video_id"
        )
    code, reason = (job.error.code, job.error.message) if job.error else (str(job.state), "it has no file")
    # OpenAI's clients repeat a 409 unless this header says that it is in vain.
    headers = {"x-should-retry": "false"}
    raise VideoNotReadyError(f"The video is {job.state}: {reason}", "video_id", code, headers)


def _no_file_message(variant: Variant) -> str:
    if variant == "spritesheet":
        return "This video has no spritesheet: it was made before there were any, or its files are gone."
    return f"The {variant} of this video is gone."


def file_headers(info: ObjectInfo, filename: str) -> dict[str, str]:
    """Of the answer that sends an object which never changes. filename: for who saves it."""
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


async def send_file(store: Bucket, request: Request, key: str, info: ObjectInfo, headers: dict[str, str]) -> Response:
    """The object, or the part of it that the request asks for.

    Raises:
        RangeNotWithinFileError: it asks for a part that the object does not have.
    """
    byte_range = _requested_range(request, headers, info.size)
    start, length = byte_range or (0, info.size)
    headers = headers | {"Content-Length": str(length), "Content-Type": info.content_type}
    if request.method == "HEAD":
        return Response(headers=headers)
    if byte_range is not None:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{info.size}"
    chunks = store.stream(key, start, length)
    return await _stream_response(chunks, 200 if byte_range is None else 206, headers)


def _requested_range(request: Request, headers: dict[str, str], size: int) -> tuple[int, int] | None:
    """Start and length of the bytes that the request asks for; None for the whole file.

    RFC 9110, 13.1.5 and 14.2: Range counts for GET only, and only if If-Range names the file as it is now.
    """
    if request.method != "GET":
        return None
    if request.headers.get("if-range") not in (None, headers["ETag"], headers.get("Last-Modified")):
        return None
    return parse_range(request.headers.get("range"), size)


_ONE_RANGE = re.compile(r"bytes=\s*(?:(\d+)-(\d*)|-(\d+))\s*", re.IGNORECASE | re.ASCII)
# Longer numbers exceed every file; int() of a very long one is slow.
_MAX_DIGITS = 18


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


async def _stream_response(source: AsyncIterator[bytes], status: int, headers: dict[str, str]) -> Response:
    """An answer whose first chunk is read before it begins, while an error can still have a status of its own."""
    generator = cast(AsyncGenerator[bytes, None], source)
    first = await anext(generator, b"")

    async def chunks() -> AsyncGenerator[bytes, None]:
        async with aclosing(generator):
            yield first
            async for chunk in generator:
                yield chunk

    return _FileResponse(chunks(), status, headers)
