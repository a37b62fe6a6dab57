"""OpenAI's routes under /v1: the `openai` package works with them unchanged.

The short routes are further paths to the same handlers.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response

from serve_app.api_schemas import (
    ErrorEnvelope,
    ModelList,
    Status,
    Video,
    VideoHistory,
    VideoPage,
    states_of,
    to_history,
    to_model_list,
    to_page,
    to_video,
)
from serve_app.http_errors import ERROR_RESPONSES
from serve_app.jobs import JobFilter, JobState, Order
from serve_app.request_body import CONTENT_TYPES, read_fields
from serve_app.request_headers import REPLAYED_DOCS, REPLAYED_HEADER, Caller, TenantName
from serve_app.request_schema import VideoRequest, request_schema
from serve_app.services import Services
from serve_app.video_content import CONTENT_RESPONSES, ContentVariant, send_content
from serve_app.video_requests import VideoRequests, conflict

POLL_HEADER = "openai-poll-after-ms"
# OpenAI's clients keep the interval of their first poll, so it must suit a video of a second and one of minutes.
POLL_AFTER_MS = 250

CONTENT_DOCS: dict[str, Any] = {"responses": {**CONTENT_RESPONSES, **ERROR_RESPONSES}, "response_class": Response}

UnixSeconds = Annotated[float, Query(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which videos a listing holds; FastAPI fills it in and describes it."""

    limit: Annotated[int, Query(ge=1, le=100, description="how many at most")] = 20
    after: Annotated[str | None, Query(description="id of the last video of the page before")] = None
    order: Annotated[Order, Query(description="by the time of creation")] = "desc"
    status: Annotated[Status | None, Query(description="OpenAI's; not together with state")] = None
    state: Annotated[JobState | None, Query(description="the exact one; not together with status")] = None
    tenant: Annotated[TenantName | None, Query(description="whose videos")] = None
    created_after: Annotated[UnixSeconds | None, Query(description="Unix seconds, inclusive")] = None
    created_before: Annotated[UnixSeconds | None, Query(description="Unix seconds, exclusive")] = None

    @property
    def wanted(self) -> JobFilter:
        """Raises InvalidRequestError if both status and state are given."""
        if self.status is not None and self.state is not None:
            raise conflict("status", "state")
        states = (self.state,) if self.state else states_of(self.status) if self.status else ()
        return JobFilter(states, self.tenant, self.created_after, self.created_before)


class OpenAIVideos:
    """The handlers; `add_to` gives them their routes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._retention = services.settings.retention
        schema = request_schema(services.settings.model, "CreateVideoRequest")
        self._requests = VideoRequests(services.settings.model, schema, services.count_tokens)

    def add_to(self, app: FastAPI) -> None:
        docs: dict[str, Any] = {"tags": ["OpenAI"], "responses": ERROR_RESPONSES}
        create_docs = {**docs, **accept_docs(self._requests.schema, 200)}
        app.add_api_route("/v1/videos", self.create, methods=["POST"], name="create_video", **create_docs)
        app.add_api_route("/v1/videos", self.list, methods=["GET"], name="list_videos", **docs)
        video = "/v1/videos/{video_id}"
        app.add_api_route(video, self.retrieve, methods=["GET"], name="retrieve_video", **docs)
        app.add_api_route(f"{video}/cancel", self.cancel, methods=["POST"], name="cancel_video", **docs)
        app.add_api_route(f"{video}/history", self.history, methods=["GET"], name="list_moves", **docs)
        content, content_docs = f"{video}/content", {**docs, **CONTENT_DOCS}
        app.add_api_route(content, self.content, methods=["GET"], name="download_content", **content_docs)
        app.add_api_route(content, self.content, methods=["HEAD"], include_in_schema=False)
        app.add_api_route("/v1/models", self.models, methods=["GET"], name="list_models", **docs)

    async def create(self, request: Request, response: Response, caller: Annotated[Caller, Depends()]) -> Video:
        """Accept a video to be made; answers at once with its id, before any work."""
        return await self.accept(self._requests, request, response, caller)

    async def accept(self, requests: VideoRequests, request: Request, response: Response, caller: Caller) -> Video:
        """Make a video of a body as `requests` reads it, or find the one that the caller's key stands for."""
        fields = await read_fields(request, self._services.settings.ingress.max_body_bytes)
        accepted = await self._services.submit(requests.check(fields), caller)
        if accepted.repeated:
            response.headers[REPLAYED_HEADER] = "true"
        return to_video(accepted.job, self._retention)

    async def list(self, query: Annotated[ListQuery, Depends()]) -> VideoPage:
        """List videos by their time of creation."""
        page = await self._services.page(query.limit, query.after, query.order, query.wanted)
        return to_page(page, self._retention)

    async def retrieve(self, video_id: str, response: Response) -> Video:
        """Tell the state of a video; until it is final, a header says how soon to ask again."""
        job = await self._services.job(video_id)
        if not job.final:
            response.headers[POLL_HEADER] = str(POLL_AFTER_MS)
        return to_video(job, self._retention)

    async def cancel(self, video_id: str) -> Video:
        """Stop the making of a video at its next step; 409 if it is completed or failed."""
        return to_video(await self._services.cancel(video_id), self._retention)

    async def history(self, video_id: str) -> VideoHistory:
        """List the moves of a video from state to state, oldest first, with their reasons."""
        return to_history(await self._services.history(video_id))

    async def content(self, request: Request, video_id: str, variant: ContentVariant = "video") -> Response:
        """Download the mp4 or the poster of a completed video, or the newest preview of one that is being sampled.

        The files take Range, If-Range and If-None-Match; the preview is sent whole.
        """
        return await send_content(self._services, request, video_id, variant)

    async def models(self) -> ModelList:
        """List the served model and what may be asked of it."""
        return to_model_list(self._services.settings.model)


def accept_docs(schema: type[VideoRequest], status: int) -> dict[str, Any]:
    """The OpenAPI description of a route that makes videos and reads its body, as `schema` has it, itself."""
    content = {"schema": schema.model_json_schema()}
    retry_after = {"description": "seconds", "schema": {"type": "integer"}}
    responses = {
        status: {"description": "The video, accepted", "headers": REPLAYED_DOCS},
        429: {
            "model": ErrorEnvelope,
            "description": "Too many videos wait, in all or of this tenant",
            "headers": {"Retry-After": retry_after},
        },
        **ERROR_RESPONSES,
    }
    body = {"required": True, "content": dict.fromkeys(CONTENT_TYPES, content)}
    return {"openapi_extra": {"requestBody": body}, "responses": responses, "status_code": status}
