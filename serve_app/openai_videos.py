"""OpenAI's routes under /v1: the `openai` package works with them unchanged."""

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from serve_app.api_schemas import ModelList, Video, VideoPage, to_model_list, to_page, to_video
from serve_app.http_errors import ERROR_RESPONSES
from serve_app.jobs import Job
from serve_app.request_body import CONTENT_TYPES, read_fields
from serve_app.request_schema import VideoRequest, request_schema
from serve_app.services import Order, Services
from serve_app.video_content import CONTENT_RESPONSES, ContentVariant, send_content
from serve_app.video_requests import VideoRequests

POLL_HEADER = "openai-poll-after-ms"
# OpenAI's clients keep the interval of their first poll, so it must suit a video of a second and one of minutes.
POLL_AFTER_MS = 250

Limit = Annotated[int, Query(ge=1, le=100, description="how many at most")]
After = Annotated[str | None, Query(description="id of the last video of the page before")]


class OpenAIVideos:
    """The handlers; `add_to` gives them their routes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        schema = request_schema(services.settings.model, "CreateVideoRequest")
        self._requests = VideoRequests(services.settings.model, schema, services.count_tokens)

    def add_to(self, app: FastAPI) -> None:
        docs: dict[str, Any] = {"tags": ["OpenAI"], "responses": ERROR_RESPONSES}
        content = {**docs, "responses": {**CONTENT_RESPONSES, **ERROR_RESPONSES}, "response_class": Response}
        create_docs = {**docs, "openapi_extra": request_body_docs(self._requests.schema)}
        app.add_api_route("/v1/videos", self.create, methods=["POST"], name="create_video", **create_docs)
        app.add_api_route("/v1/videos", self.list, methods=["GET"], name="list_videos", **docs)
        app.add_api_route("/v1/videos/{video_id}", self.retrieve, methods=["GET"], name="retrieve_video", **docs)
        app.add_api_route("/v1/videos/{video_id}/cancel", self.cancel, methods=["POST"], name="cancel_video", **docs)
        path = "/v1/videos/{video_id}/content"
        app.add_api_route(path, self.content, methods=["GET"], name="download_content", **content)
        app.add_api_route(path, self.content, methods=["HEAD"], include_in_schema=False)
        app.add_api_route("/v1/models", self.models, methods=["GET"], name="list_models", **docs)

    async def create(self, request: Request) -> Video:
        """Accept a video to be made; answers at once with its id, before any work."""
        fields = await read_fields(request, self._services.settings.ingress.max_body_bytes)
        return to_video(await self._services.submit(self._requests.spec(fields)))

    async def list(self, limit: Limit = 20, after: After = None, order: Order = "desc") -> VideoPage:
        """List videos by their time of creation."""
        page = await self._services.page(limit, after, order)
        return to_page(page.jobs, page.has_more)

    async def retrieve(self, video_id: str, response: Response) -> Video:
        """Tell the state of a video."""
        job = await self._services.job(video_id)
        hint_poll(job, response)
        return to_video(job)

    async def cancel(self, video_id: str) -> Video:
        """Stop the making of a video at its next step; 409 if it is completed or failed."""
        return to_video(await self._services.cancel(video_id))

    async def content(self, request: Request, video_id: str, variant: ContentVariant = "video") -> Response:
        """Download the mp4 or the poster of a completed video, or the newest preview of one that is being sampled.

        The files take Range, If-Range and If-None-Match; the preview is sent whole.
        """
        return await send_content(self._services, request, video_id, variant)

    async def models(self) -> ModelList:
        """List the served model and what may be asked of it."""
        return to_model_list(self._services.settings.model)


def hint_poll(job: Job, response: Response) -> None:
    """Tell the client how soon to ask again, in milliseconds."""
    if not job.final:
        response.headers[POLL_HEADER] = str(POLL_AFTER_MS)


def request_body_docs(schema: type[VideoRequest]) -> dict[str, Any]:
    """The OpenAPI description of a body that the route reads itself."""
    content = {"schema": schema.model_json_schema()}
    return {"requestBody": {"required": True, "content": dict.fromkeys(CONTENT_TYPES, content)}}
