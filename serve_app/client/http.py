"""The API over HTTP, for programs on another machine or in another process: requests, events, streams.

Every request may be repeated without harm, those that make videos by their Idempotency-Key; so each is repeated while
the server is away, for a bounded time. What a user gives to the client is checked before it is sent.
"""

import asyncio
import json
import random
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from httpx_sse import EventSource, ServerSentEvent

from serve_app.client.errors import (
    ClientError,
    RefusedError,
    UnreachableError,
    UsageError,
    VideoDeletedError,
    refused_error,
)

Video = dict[str, Any]  # the Video object of docs/api.md
Event = dict[str, Any]  # one of docs/api.md, "Events"; its `type` says which

DEFAULT_URL = "http://127.0.0.1:8000"
PATIENCE_S = 120.0
PAGE = 100
# The server sends a comment every few seconds; a stream that is silent for so long is dead.
SILENCE_S = 60.0
_CONNECT_S = 10.0
_ANSWER_S = 60.0
# Of what is computed while its client waits: the server's own bound is 600 s.
LONG_ANSWER_S = 660.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
# A 500 that stays is a mistake of the server's and not a restart.
_INTERNAL_ERROR_S = 5.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

T = TypeVar("T")


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as opened:
        while piece := await asyncio.to_thread(opened.read, 1 << 20):
            yield piece


class Patience:
    """Pauses between attempts, doubling, until `limit_s` have passed since the first failure after a success."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.reset()

    def reset(self) -> None:
        """Something succeeded: the time begins anew with the next failure."""
        self._failing_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    async def pause_after(self, error: ClientError) -> None:
        """Pause after a failure, at least as long as the server asks for. Raises `error` when the time is over."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        pause_s = self._pause_s * random.uniform(0.5, 1)
        limit_s = self._limit_s
        if isinstance(error, RefusedError):
            pause_s = max(pause_s, error.retry_after_s or 0)
            limit_s = min(limit_s, _INTERNAL_ERROR_S) if error.status == 500 else limit_s
        if now + pause_s > self._failing_since + limit_s:
            raise error
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s)


class Client:
    """A client of one server; a context manager.

    Args:
        url: where the server is, with or without /v1.
        api_key: sent as a bearer token; in no message.
        patience_s: how long a server that was there once and does not answer is waited for.
        transport: what carries the requests; None for the network.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        patience_s: float = PATIENCE_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = checked_url(url)
        self._patience_s = patience_s
        self._has_answered = False
        self._clock_offset_s = 0.0  # the server's clock less ours
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {checked_key(api_key)}"} if api_key else {},
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=self._url.host not in LOOPBACK,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    @property
    def now(self) -> float:
        """The server's clock, Unix seconds, by its last answer."""
        return time.time() + self._clock_offset_s

    async def create(self, fields: Mapping[str, Any], key: str | None = None) -> Video:
        """Ask for a video; returns it as it is then, mostly queued.

        Args:
            fields: of the request, by their names in the API; `prompt` is the one that is needed.
            key: the Idempotency-Key: the same fields and key make one video, however often they are sent. None for a
                new one, under which this call alone may be repeated.

        Raises:
            RefusedError: the server does not take it; `code` and `param` say why.
            UnreachableError: there is no answer.
        """
        return await self.request("POST", "/v1/videos", fields, key=key or new_key())

    async def remix(
        self,
        video_id: str,
        prompt: str,
        key: str | None = None,
        cancel_after: str | None = None,
        quality: str | None = None,
        lora: str | None = None,
        lora_scale: float | None = None,
    ) -> Video:
        """Ask for a video like another one, its seed too, with another prompt.

        Args:
            key: as of `create`, and so are the errors.
            cancel_after: the deadline of the new video, such as 90s.
            quality: of the new video, None for that of the old one; so are `lora` and `lora_scale`.
        """
        fields = {
            "prompt": prompt,
            **_given(cancel_after=cancel_after, quality=quality, lora=lora, lora_scale=lora_scale),
        }
        return await self.request("POST", f"{video_path(video_id)}/remix", fields, key=key or new_key())

    async def enhance(
        self,
        video_id: str,
        steps: int | None = None,
        key: str | None = None,
        cancel_after: str | None = None,
        quality: str | None = None,
        lora: str | None = None,
        lora_scale: float | None = None,
    ) -> Video:
        """Ask for the same video in more denoising steps, None for the model's own choice. Otherwise as `remix`."""
        fields = _given(
            num_inference_steps=steps, cancel_after=cancel_after, quality=quality, lora=lora, lora_scale=lora_scale
        )
        return await self.request("POST", f"{video_path(video_id)}/enhance", fields, key=key or new_key())

    async def retrieve(self, video_id: str) -> Video:
        """The video as it is now. Raises RefusedError if there is none."""
        return await self.request("GET", video_path(video_id))

    async def cancel(self, video_id: str) -> Video:
        """End a video that waits or is being made. Raises RefusedError if it is completed or failed already."""
        return await self.request("POST", f"{video_path(video_id)}/cancel")

    async def delete(self, video_id: str) -> dict[str, Any]:
        """Remove a video with its files and its history; what is being made is cancelled first."""
        return await self.request("DELETE", video_path(video_id))

    async def models(self) -> dict[str, Any]:
        """The served model with its limits and defaults, as GET /v1/models tells them."""
        return await self.request("GET", "/v1/models")

    async def videos(
        self, query: Mapping[str, Any] = MappingProxyType({}), limit: int | None = None
    ) -> AsyncIterator[Video]:
        """List videos page by page, the newest first unless the query says otherwise.

        Args:
            query: of GET /v1/videos, without a limit.
            limit: how many at most, None for all.
        """
        params = dict(query)
        left = limit
        while left is None or left > 0:
            params["limit"] = PAGE if left is None else min(PAGE, left)
            page = await self.request("GET", "/v1/videos", params=params)
            for video in page["data"]:
                yield video
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]
            left = None if left is None else left - len(page["data"])

    async def events(self, video_id: str) -> AsyncGenerator[Event, None]:
        """What happens to a video, to its end: the last event has the type `done` and the Video.

        A stream that breaks is taken up again where it ended.

        Raises:
            RefusedError: there is no such video.
            VideoDeletedError: somebody deleted it; its event was given before.
            UnreachableError: the server was away for longer than `patience_s`; the video is made all the same.
        """
        patience = self.patience()
        last_id = ""
        while True:
            try:
                async with aclosing(self._stream_events(video_id, last_id)) as stream:
                    async for sse in stream:
                        patience.reset()
                        last_id = sse.id or last_id
                        if not sse.data:
                            # httpx-sse gives an event, without data, for the empty line after a heartbeat.
                            continue
                        event = sse.json()
                        yield event
                        if event["type"] == "done":
                            return
                        if event["type"] == "deleted":
                            raise VideoDeletedError(video_id)
                failure: ClientError = UnreachableError(f"{self._origin} ends the stream of events of {video_id} early")
            except (httpx.TransportError, RefusedError) as error:
                failure = self.temporary_error(error)
            await patience.pause_after(failure)

    async def wait_until_done(self, video_id: str, on_event: Callable[[Event], None] = lambda event: None) -> Video:
        """Wait for the end of a video, be it a failure; `on_event` gets what happens until then. Raises as `events`."""
        async with aclosing(self.events(video_id)) as events:
            async for event in events:
                if event["type"] == "done":
                    video: Video = event["video"]
                    return video
                on_event(event)
        raise AssertionError("events() ends with the event done or raises")

    async def request(
        self,
        method: str,
        path: str,
        fields: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Send a request, again if need be, and return the JSON of its answer.

        Args:
            fields: the body, sent as JSON.
            params: the query.
            key: the Idempotency-Key.

        Raises:
            RefusedError: the server's answer is an error, and stays one.
            UnreachableError: there is no answer.
        """
        headers = {} if key is None else {"Idempotency-Key": key}
        content = None
        if fields is not None:
            content = json_body(fields)
            headers["Content-Type"] = "application/json"
        return await self._answer(
            lambda: self._http.request(method, path, params=params, content=content, headers=headers),
            self._json_object,
        )

    async def _answer(self, send: Callable[[], Awaitable[httpx.Response]], read: Callable[[httpx.Response], T]) -> T:
        """What `read` makes of the answer; sent again after a failure that may pass."""
        patience = self.patience()
        while True:
            try:
                return read(await send())
            except (httpx.TransportError, RefusedError) as error:
                await patience.pause_after(self.temporary_error(error))

    async def upload(
        self, path: str, file: Path, content_type: str, params: Mapping[str, Any], key: str, is_gzip: bool = False
    ) -> dict[str, Any]:
        """Post a file, again if need be, and return the JSON of the answer.

        Args:
            params: the query.
            key: the Idempotency-Key, so that the file counts once however often it is sent.
            is_gzip: the file is packed; the server unpacks it.

        Raises:
            RefusedError, UnreachableError: as `request`.
        """
        headers = {"Content-Type": content_type, "Idempotency-Key": key}
        if is_gzip:
            headers["Content-Encoding"] = "gzip"
        return await self._answer(
            lambda: self._http.post(path, params=params, content=_pieces(file), headers=headers, timeout=LONG_ANSWER_S),
            self._json_object,
        )

    async def request_bytes(self, path: str, accept: str) -> bytes:
        """Get the body of an answer of the content type `accept`, again if need be.

        Raises:
            RefusedError, UnreachableError: as `request`; UnreachableError also for another content type.
        """

        def read(response: httpx.Response) -> bytes:
            self._learn_from(response)
            if not response.is_success:
                raise refused_error(response)
            if response.headers.get("content-type") != accept:
                raise UnreachableError(f"{self._origin} does not answer as {accept}; check --url")
            return response.content

        headers = {"Accept": accept}
        return await self._answer(lambda: self._http.get(path, headers=headers, timeout=LONG_ANSWER_S), read)

    @asynccontextmanager
    async def stream(
        self, path: str, headers: Mapping[str, str], params: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """An answer whose body is still to be read, redirects followed. Raises RefusedError, httpx.TransportError."""
        # Not compressed on the way: then the Content-Length is the length of the file.
        all_headers = {"Accept-Encoding": "identity", **headers}
        timeout = httpx.Timeout(SILENCE_S, connect=_CONNECT_S, pool=None)
        async with self._http.stream(
            "GET", path, params=params, headers=all_headers, timeout=timeout, follow_redirects=True
        ) as response:
            self._learn_from(response)
            if not response.is_success:
                await response.aread()
                raise refused_error(response)
            yield response

    def patience(self) -> Patience:
        return Patience(self._patience_s)

    def temporary_error(self, error: httpx.TransportError | RefusedError) -> ClientError:
        """What a failed attempt means while it may be repeated.

        Raises:
            RefusedError: the answer will stay as it is.
            UnreachableError: no server was ever there.
        """
        if isinstance(error, RefusedError):
            if not error.temporary:
                raise error
            return error
        why = str(error) or type(error).__name__
        unreachable = UnreachableError(
            f"{self._origin} does not answer ({why}); start the server there, or name another one with --url or "
            "MOCHI_SERVE_URL"
        )
        if not self._has_answered and isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise unreachable from None
        return unreachable

    @property
    def _origin(self) -> str:
        """The server's URL for messages."""
        return str(self._url.copy_with(userinfo=b"")).rstrip("/")

    async def _stream_events(self, video_id: str, last_id: str) -> AsyncGenerator[ServerSentEvent, None]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        headers |= {"Last-Event-ID": last_id} if last_id else {}
        async with (
            self.stream(f"{video_path(video_id)}/events", headers) as response,
            aclosing(EventSource(response).aiter_sse()) as stream,
        ):
            async for sse in stream:
                yield sse

    def _json_object(self, response: httpx.Response) -> dict[str, Any]:
        self._learn_from(response)
        if not response.is_success:
            raise refused_error(response)
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UnreachableError(f"{self._origin} is no mochi-serve: its answer is no JSON object; check --url")
        return value

    def _learn_from(self, response: httpx.Response) -> None:
        """Any answer shows that a server is there; its header Date shows what time it is there."""
        self._has_answered = True
        try:
            self._clock_offset_s = parsedate_to_datetime(response.headers["date"]).timestamp() - time.time()
        except (KeyError, ValueError):
            # Without a readable date the last one counts.
            return


def new_key() -> str:
    """An Idempotency-Key that nobody else has."""
    return str(uuid.uuid4())


def video_path(video_id: str) -> str:
    """The path of a video. Raises UsageError for what is no id."""
    if not _VIDEO_ID.fullmatch(video_id):
        raise UsageError(f"{video_id!r} is no id of a video; `mochi-serve list` shows them")
    return f"/v1/videos/{video_id}"


def video_error(video: Video) -> dict[str, Any]:
    """The code and the message of a video that failed or was cancelled."""
    error: dict[str, Any] | None = video["error"]
    return error or {"code": video["state"], "message": "no reason was given"}


def checked_url(url: str) -> httpx.URL:
    """The server's address without /v1 and a closing slash. Raises UsageError for what is no address."""
    try:
        parsed = httpx.URL(url.strip().rstrip("/").removesuffix("/v1"))
        # httpx accepts what is no port and no IPv6 address.
        _ = urlsplit(url).port
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(
            "the URL of the server must be like http://127.0.0.1:8000; set it with --url or MOCHI_SERVE_URL"
        )
    return parsed


def checked_key(key: str) -> str:
    """Raises UsageError, without the key, where it cannot be sent in a header."""
    if not re.fullmatch(r"[!-~]+", key):
        raise UsageError("the API key must be printable ASCII without spaces; check MOCHI_SERVE_API_KEY or --api-key")
    return key


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def json_body(fields: Mapping[str, Any]) -> bytes:
    """Fields as JSON. Raises UsageError for a number that JSON does not have."""
    try:
        return json.dumps(fields, allow_nan=False).encode("ascii")
    except ValueError:
        raise UsageError("a number of the request is not finite; give a decimal number") from None
