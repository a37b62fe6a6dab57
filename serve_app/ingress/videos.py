"""OpenAI's routes under /v1: the `openai` package works with them unchanged. Beside them: cancel, enhance, history.

The short routes are further paths to the same handlers.

A way past FastAPI's parameters for the read that clients repeat most.

To solve the declared parameters of a GET takes FastAPI longer than all that is done for it otherwise. A request that
gives none of them, as nearly every poll, is answered without; all others, and the OpenAPI document, go the common way.
"""

import inspect
from base64 import b64encode
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel

from serve_app.access.tenants import Caller
from serve_app.errors import ApiError
from serve_app.ingress.authentication import REPLAYED_DOCS, REPLAYED_HEADER, TenantName, authenticate, plain_caller
from serve_app.ingress.content import ContentVariant, send_content
from serve_app.ingress.events import VideoEvents
from serve_app.ingress.services import Services
from serve_app.jobs import Job, JobFilter, JobState, Order
from serve_app.openapi.document import body_examples
from serve_app.openapi.errors import (
    CONFLICTING_PARAMETERS,
    CREATE_ERRORS,
    DERIVE_ERRORS,
    VIDEO_FINAL,
    VIDEO_NOT_FOUND,
    WRITE_ERRORS,
    error_responses,
)
from serve_app.openapi.media import EVENT_DOCS, EVENT_RESPONSES, content_docs
from serve_app.openapi.schemas import DeletedVideo, ModelList, Status, Video, VideoHistory, VideoPage
from serve_app.openapi.views import states_of, to_history, to_model_list, to_page, to_video
from serve_app.requests.body import CONTENT_TYPES, read_fields
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import CheckedRequest, EnhanceRequests, RemixRequests, VideoRequests, conflict

POLL_HEADER = "openai-poll-after-ms"
# OpenAI's clients keep the interval of their first poll, so it must suit a video of a second and one of minutes.
POLL_AFTER_MS = 250
MAX_WAIT_S = 60

UnixSeconds = Annotated[float, Query(ge=0, allow_inf_nan=False)]
Asker = Annotated[Caller, Depends(authenticate)]
WaitSeconds = Annotated[
    float,
    Query(
        ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="answer only when the video is final, or after so long"
    ),
]
Include = Annotated[Literal["preview"] | None, Query(description="what the video is to be told with")]


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which videos a listing holds; FastAPI fills it in and describes it."""

    limit: Annotated[int, Query(ge=1, le=100, description="how many at most")] = 20
    after: Annotated[str | None, Query(description="id of the last video of the page before")] = None
    order: Annotated[Order, Query(description="by the time of creation")] = "desc"
    status: Annotated[Status | None, Query(description="OpenAI's; not together with state")] = None
    state: Annotated[JobState | None, Query(description="the exact one; not together with status")] = None
    tenant: Annotated[
        TenantName | None, Query(description="whose videos; where keys are needed, the key's tenant whatever it says")
    ] = None
    created_after: Annotated[UnixSeconds | None, Query(description="Unix seconds, inclusive")] = None
    created_before: Annotated[UnixSeconds | None, Query(description="Unix seconds, exclusive")] = None

    @property
    def wanted(self) -> JobFilter:
        """Raises InvalidRequestError if both status and state are given."""
        if self.status is not None and self.state is not None:
            raise conflict("status", "state")
        states = (self.state,) if self.state else states_of(self.status) if self.status else ()
        return JobFilter(states, self.tenant, self.created_after, self.created_before)


async def list_query(**fields: Any) -> ListQuery:
    """Takes what ListQuery does. FastAPI fills a class in on another thread; the way there costs more than a page."""
    return ListQuery(**fields)


list_query.__signature__ = inspect.signature(ListQuery)  # type: ignore[attr-defined]


class OpenAIVideos:
    """The handlers; `add_to` gives them their routes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._retention = services.settings.retention
        schema = request_schema(services.settings.model, "CreateVideoRequest")
        self._requests = VideoRequests(services.settings.model, schema, services.count_tokens)
        self._remixes = RemixRequests(self._requests)
        self._enhancements = EnhanceRequests(self._requests)

    def add_to(self, app: FastAPI) -> None:
        video = "/v1/videos/{video_id}"
        # Routes are tried in their order, and this one is asked for most.
        self.add_retrieve(app, video, "OpenAI", "retrieve_video")
        self._add_makers(app)
        for method, path, handler, name, refusals in (
            ("GET", "/v1/videos", self.list, "list_videos", (CONFLICTING_PARAMETERS,)),
            ("DELETE", video, self.delete, "delete_video", (VIDEO_NOT_FOUND, *WRITE_ERRORS)),
            ("POST", f"{video}/cancel", self.cancel, "cancel_video", (VIDEO_NOT_FOUND, VIDEO_FINAL, *WRITE_ERRORS)),
            ("GET", f"{video}/history", self.history, "list_moves", (VIDEO_NOT_FOUND,)),
            ("GET", "/v1/models", self.models, "list_models", ()),
        ):
            app.add_api_route(
                path, handler, methods=[method], name=name, tags=["OpenAI"], responses=error_responses(*refusals)
            )
        docs: dict[str, Any] = {"tags": ["OpenAI"], "responses": EVENT_RESPONSES | error_responses(VIDEO_NOT_FOUND)}
        app.add_api_route(f"{video}/events", self.events, methods=["GET"], name="follow_video", **docs | EVENT_DOCS)
        self.add_content(app, f"{video}/content", "OpenAI", "download_content")

    def add_retrieve(self, app: FastAPI, path: str, tag: str, name: str) -> None:
        """A route to one video."""
        docs: dict[str, Any] = {"name": name, "tags": [tag], "responses": retrieve_docs()}
        plain = plain_route(self._retrieve_plain)
        app.router.add_api_route(path, self.retrieve, methods=["GET"], route_class_override=plain, **docs)

    def add_content(self, app: FastAPI, path: str, tag: str, name: str) -> None:
        """A route to the files of a video, by GET and HEAD."""
        docs: dict[str, Any] = {"tags": [tag], "response_class": Response}
        get, head = docs | content_docs(get=True), docs | content_docs(get=False)
        app.add_api_route(path, self.content, methods=["GET"], name=name, **get)
        app.add_api_route(path, self.content, methods=["HEAD"], name=f"probe_{name}", **head)

    def _add_makers(self, app: FastAPI) -> None:
        video = "/v1/videos/{video_id}"
        for path, handler, name, schema, refusals in (
            ("/v1/videos", self.create, "create_video", self._requests.schema, CREATE_ERRORS),
            (f"{video}/remix", self.remix, "remix_video", self._remixes.schema, DERIVE_ERRORS),
            (f"{video}/enhance", self.enhance, "enhance_video", self._enhancements.schema, DERIVE_ERRORS),
        ):
            docs = self.accept_docs(schema, 200, refusals)
            app.add_api_route(path, handler, methods=["POST"], name=name, tags=["OpenAI"], **docs)

    def accept_docs(self, schema: type[BaseModel], status: int, refusals: tuple[ApiError, ...]) -> dict[str, Any]:
        """The OpenAPI description of a route that makes videos and reads its body, as `schema` has it, itself.

        refusals: the errors that it may answer beside those of all routes.
        """
        examples = body_examples(schema, self._services.settings.model)
        content = {"schema": schema.model_json_schema(), "examples": examples}
        accepted = {"description": "The video, accepted", "headers": REPLAYED_DOCS}
        required = any(field.is_required() for field in schema.model_fields.values())
        body = {"required": required, "content": dict.fromkeys(CONTENT_TYPES, content)}
        responses = {status: accepted, **error_responses(*refusals)}
        return {"openapi_extra": {"requestBody": body}, "responses": responses, "status_code": status}

    async def create(self, request: Request, response: Response, caller: Asker) -> Video:
        """Accept a video to be made; answers at once with its id, before any work."""
        return await self.accept(self._requests.check, request, response, caller)

    async def remix(self, request: Request, response: Response, caller: Asker, video_id: str) -> Video:
        """Accept a video like another one, with the same seed and settings and a new prompt."""
        source = await self._services.job(video_id, caller)
        return await self.accept(lambda fields: self._remixes.check(fields, source), request, response, caller)

    async def enhance(self, request: Request, response: Response, caller: Asker, video_id: str) -> Video:
        """Accept the same video in more denoising steps, with the same seed and prompt. The body may be left out."""
        source = await self._services.job(video_id, caller)
        return await self.accept(lambda fields: self._enhancements.check(fields, source), request, response, caller)

    async def accept(
        self,
        check: Callable[[dict[str, object]], CheckedRequest],
        request: Request,
        response: Response,
        caller: Caller,
    ) -> Video:
        """Make a video of a body as `check` reads it, or find the one that the caller's key stands for."""
        bounds = self._services.settings.ingress
        body = {} if _has_no_body(request) else await read_fields(request, bounds.max_body_bytes, bounds.body_timeout_s)
        accepted = await self._services.submit(check(body), caller)
        if accepted.repeated:
            response.headers[REPLAYED_HEADER] = "true"
        return self._video(accepted.job)

    async def list(self, query: Annotated[ListQuery, Depends(list_query)], caller: Asker) -> VideoPage:
        """List videos by their time of creation."""
        page = await self._services.page(query.limit, query.after, query.order, query.wanted, caller)
        return to_page(page, self._retention)

    async def retrieve(
        self, video_id: str, response: Response, caller: Asker, wait: WaitSeconds = 0, include: Include = None
    ) -> Video:
        """Tell the state of a video; until it is final, a header says how soon to ask again."""
        job = await self._services.job_at_the_end(video_id, caller, wait)
        response.headers.update(_poll_headers(job))
        video = self._video(job)
        if include and (picture := await self._services.preview(job)):
            video.preview = b64encode(picture).decode("ascii")
        return video

    async def _retrieve_plain(self, request: Request, caller: Caller) -> Response:
        """What `retrieve` answers without parameters."""
        job = await self._services.job(request.path_params["video_id"], caller)
        return Response(self._video(job).model_dump_json(), 200, _poll_headers(job), "application/json")

    async def delete(self, video_id: str, caller: Asker) -> DeletedVideo:
        """Delete a video with all its files; one that is being made is cancelled first."""
        await self._services.delete(video_id, caller)
        return DeletedVideo(id=video_id)

    async def cancel(self, video_id: str, caller: Asker) -> Video:
        """Stop the making of a video at its next step; 409 if it is completed or failed."""
        return self._video(await self._services.cancel(video_id, caller))

    async def history(self, video_id: str, caller: Asker) -> VideoHistory:
        """List the moves of a video from state to state, oldest first, with their reasons."""
        return to_history(await self._services.history(video_id, caller))

    async def events(
        self,
        video_id: str,
        caller: Asker,
        last_event_id: Annotated[str | None, Header(description="id of the last event that was received")] = None,
    ) -> Response:
        """Follow a video: its moves, progress and previews as server-sent events, until it ends.

        A closed stream cancels nothing. With Last-Event-ID, as browsers send it by themselves, it goes on from there.
        """
        job = await self._services.job(video_id, caller)
        events = VideoEvents.after(self._services, caller, last_event_id).of(job)
        # Proxies that collect answers (nginx) are told not to.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")

    async def content(
        self,
        request: Request,
        caller: Asker,
        video_id: str,
        variant: Annotated[ContentVariant, Query(description="which file, or the newest preview")] = "video",
        redirect: Annotated[
            bool, Query(description="whether to answer with a signed link where the store can be reached")
        ] = True,
    ) -> Response:
        """Download the mp4, poster or spritesheet of a completed video, or the newest preview of one being sampled.

        The files take Range, If-Range and If-None-Match; the preview is sent whole.
        """
        return await send_content(self._services, caller, request, video_id, variant, redirect)

    async def models(self, caller: Asker) -> ModelList:
        """List the served model and what may be asked of it."""
        return to_model_list(self._services.settings.model)

    def _video(self, job: Job) -> Video:
        return to_video(job, self._retention)


def retrieve_docs() -> dict[int | str, dict[str, Any]]:
    """The answers of a route to one video."""
    poll = {"description": "milliseconds, when to ask again; until it is final", "schema": {"type": "integer"}}
    found = {"description": "The video as it is now", "headers": {POLL_HEADER: poll}}
    return {200: found, **error_responses(VIDEO_NOT_FOUND)}


def _poll_headers(job: Job) -> dict[str, str]:
    return {} if job.final else {POLL_HEADER: str(POLL_AFTER_MS)}


def _has_no_body(request: Request) -> bool:
    """RFC 9112, 6.3. A request for what needs a field is then told which one."""
    headers = request.headers
    return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers


PlainRead = Callable[[Request, Caller], Awaitable[Response]]


def plain_route(read: PlainRead) -> type[APIRoute]:
    """A route whose requests without query and own headers are answered by `read`, as its endpoint would answer them.

    Authentication is the same, and so are the answers to its errors.
    """

    class PlainRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            declared = super().get_route_handler()

            async def handle(request: Request) -> Response:
                caller = None if request.scope["query_string"] else await plain_caller(request)
                return await (declared(request) if caller is None else read(request, caller))

            return handle

    return PlainRoute
