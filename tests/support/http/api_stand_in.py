"""A small server with the API's routes for videos over memory, and with faults on request, for tests of its clients.

It speaks real HTTP on a port of its own, in a thread.
"""

import asyncio
import hashlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

FILE = bytes(range(256)) * 400
ETAG = f'"{hashlib.md5(FILE, usedforsecurity=False).hexdigest()}"'
STATES = ("queued", "encoding", "sampling", "decoding")
NO_WAIT = {"Retry-After": "0"}


class Broken(Exception):
    """Ends an answer in its middle."""


class StandIn:
    """The server's state. Faults are used up one by one by the requests that they fit."""

    def __init__(self) -> None:
        self.url = ""
        self.videos: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}  # ids of videos by their Idempotency-Key
        self.api_key: str | None = None  # None: no key is asked for
        self.pause_s = 0.01  # the length of each state
        self.hold = False  # videos stay in decoding until it is cleared
        self.failing: set[str] = set()  # prompts whose videos fail
        self.refusals: list[tuple[int, str, dict[str, str]]] = []  # status, code, headers of the next requests
        self.lost_answers = 0  # requests whose video is made while the connection breaks
        self.no_routes = 0  # requests for which a proxy says that there is no such path
        self.breaks: list[int] = []  # after how many events or bytes the next streams end
        self.seen: Counter[str] = Counter()  # requests by route
        self.headers: list[dict[str, str]] = []  # of all requests
        self.at_once = 0  # streams of events now
        self.most_at_once = 0
        self._numbers = itertools.count()

    def app(self) -> Starlette:
        video = "/v1/videos/{id}"
        routes = [
            Route("/v1/videos", self._create, methods=["POST"]),
            Route("/v1/videos", self._list, methods=["GET"]),
            Route("/v1/status", self._status, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route(video, self._retrieve, methods=["GET"]),
            Route(video, self._delete, methods=["DELETE"]),
            Route(f"{video}/cancel", self._cancel, methods=["POST"]),
            Route(f"{video}/remix", self._remix, methods=["POST"]),
            Route(f"{video}/enhance", self._enhance, methods=["POST"]),
            Route(f"{video}/events", self._events, methods=["GET"]),
            Route(f"{video}/content", self._content, methods=["GET"]),
        ]
        return Starlette(routes=routes)

    def _note(self, request: Request, name: str) -> Response | None:
        self.seen[name] += 1
        self.headers.append(dict(request.headers))
        if self.no_routes:
            self.no_routes -= 1
            return PlainTextResponse("Path not found.", 404)
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return refused(401, "invalid_api_key", {})
        if "id" in request.path_params and request.path_params["id"] not in self.videos:
            return refused(404, "video_not_found", {})
        return None

    async def _create(self, request: Request) -> Response:
        refusal = self._note(request, "create")
        if refusal is None and self.refusals:
            refusal = refused(*self.refusals.pop(0))
        return refusal or self._made(request, await request.json())

    def _made(self, request: Request, fields: dict[str, Any]) -> Response:
        key = request.headers["idempotency-key"]
        if key not in self.keys:
            self.keys[key] = self.add_video(fields)
        if self.lost_answers:
            self.lost_answers -= 1
            raise Broken
        return JSONResponse(self.videos[self.keys[key]])

    def add_video(self, fields: dict[str, Any]) -> str:
        video_id = f"video_{next(self._numbers):032x}"
        self.videos[video_id] = {
            "id": video_id,
            "object": "video",
            "status": "queued",
            "state": "queued",
            "progress": 0,
            "created_at": 1_700_000_000 + len(self.videos),
            "seconds": "1",
            "duration_s": 1.0,
            "size": "64x64",
            "seed": len(self.videos),
            "step": 0,
            "num_inference_steps": 20,
            "queue_position": 0,
            "estimated_completion_at": int(time.time()) + 5,
            "error": None,
            **fields,
        }
        return video_id

    async def _list(self, request: Request) -> Response:
        refusal = self._note(request, "list")
        if refusal is not None:
            return refusal
        videos = sorted(self.videos.values(), key=lambda video: -video["created_at"])
        ids = [video["id"] for video in videos]
        start = ids.index(request.query_params["after"]) + 1 if "after" in request.query_params else 0
        limit = int(request.query_params["limit"])
        page = videos[start : start + limit]
        last = page[-1]["id"] if page else None
        return JSONResponse({"data": page, "last_id": last, "has_more": start + limit < len(videos)})

    async def _models(self, request: Request) -> Response:
        return self._note(request, "models") or JSONResponse({"object": "list", "data": [{"id": "mochi-1"}]})

    async def _status(self, request: Request) -> Response:
        status = {"object": "server.status", "version": "0", "at": 1_700_000_000}
        status |= {"waiting": [], "running": [], "replicas": [], "gpus": [], "starting": {}}
        return self._note(request, "status") or JSONResponse(status)

    async def _retrieve(self, request: Request) -> Response:
        return self._note(request, "retrieve") or JSONResponse(self.videos[request.path_params["id"]])

    async def _delete(self, request: Request) -> Response:
        refusal = self._note(request, "delete")
        if refusal is not None:
            return refusal
        del self.videos[request.path_params["id"]]
        return JSONResponse({"id": request.path_params["id"], "object": "video.deleted", "deleted": True})

    async def _cancel(self, request: Request) -> Response:
        refusal = self._note(request, "cancel")
        if refusal is not None:
            return refusal
        video = self.videos[request.path_params["id"]]
        if video["status"] == "completed":
            return refused(409, "video_final", {"x-should-retry": "false"})
        video.update(status="failed", state="cancelled", error={"code": "cancelled", "message": "It was cancelled."})
        return JSONResponse(video)

    async def _remix(self, request: Request) -> Response:
        return await self._derived(request, "remixed_from_video_id")

    async def _enhance(self, request: Request) -> Response:
        return await self._derived(request, "enhanced_from_video_id")

    async def _derived(self, request: Request, relation: str) -> Response:
        refusal = self._note(request, relation)
        if refusal is not None:
            return refusal
        source = self.videos[request.path_params["id"]]
        return self._made(request, {"prompt": source["prompt"], **await request.json(), relation: source["id"]})

    async def _events(self, request: Request) -> Response:
        refusal = self._note(request, "events")
        if refusal is not None:
            return refusal
        after = int(request.headers.get("last-event-id", "0.0").partition(".")[0])
        break_after = self.breaks.pop(0) if self.breaks else None
        stream = self._stream(self.videos[request.path_params["id"]], after, break_after)
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _stream(self, video: dict[str, Any], after: int, break_after: int | None) -> AsyncIterator[str]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            sent = 0
            async for number, event in self._happenings(video):
                if number <= after:
                    continue
                if sent == break_after:
                    raise Broken
                sent += 1
                yield f": ping\n\nid: {number}.0\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
        finally:
            self.at_once -= 1

    async def _happenings(self, video: dict[str, Any]) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """The life of a video, the same for each stream of it, with numbers from 1."""
        for number, state in enumerate(STATES, 1):
            if video["status"] in ("queued", "in_progress"):
                video.update(state=state, status="queued" if state == "queued" else "in_progress", step=number)
            progress = {"video_id": video["id"], "state": state, "progress": 20 * number, "step": number}
            names = ("num_inference_steps", "queue_position", "estimated_completion_at")
            yield number, {"type": "progress", **progress, **{name: video[name] for name in names}}
            await asyncio.sleep(self.pause_s)
        while self.hold and video["status"] == "in_progress" and video["id"] in self.videos:
            await asyncio.sleep(0.01)
        if video["id"] not in self.videos:
            yield len(STATES) + 1, {"type": "deleted", "video_id": video["id"]}
            return
        self._end(video)
        yield len(STATES) + 1, {"type": "done", "video": video}

    def _end(self, video: dict[str, Any]) -> None:
        if video["status"] != "in_progress":
            return
        if video["prompt"] in self.failing:
            error = {"code": "out_of_memory", "message": "It needs more memory."}
            video.update(status="failed", state="failed", error=error)
        else:
            video.update(status="completed", state="completed", progress=100)

    async def _content(self, request: Request) -> Response:
        refusal = self._note(request, "content")
        if refusal is not None:
            return refusal
        if self.videos[request.path_params["id"]]["status"] != "completed":
            return refused(409, "video_not_ready", {"x-should-retry": "false"})
        start = 0
        if request.headers.get("if-range") == ETAG:
            start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": ETAG, "Content-Length": str(len(FILE) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(FILE) - 1}/{len(FILE)}"
        body = FILE[start : start + self.breaks.pop(0)] if self.breaks else FILE[start:]
        self.seen["bytes"] += len(body)

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 10_000):
                yield body[at : at + 10_000]
            if len(body) < len(FILE) - start:
                raise Broken

        return StreamingResponse(chunks(), 206 if start else 200, headers, media_type="video/mp4")


def refused(status: int, code: str, headers: dict[str, str]) -> Response:
    error = {"message": f"No: {code}.", "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers)


@contextmanager
def running_stand_in() -> Iterator[StandIn]:
    """A stand-in that listens on a free port of 127.0.0.1."""
    stand_in = StandIn()
    config = uvicorn.Config(stand_in.app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        stand_in.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield stand_in
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join()


@pytest.fixture
def api() -> Iterator[StandIn]:
    with running_stand_in() as stand_in:
        yield stand_in
