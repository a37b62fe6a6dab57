"""The short routes for people and scripts, and /health."""

from typing import Any

from fastapi import FastAPI, Request, Response

from deployments.errors import WorkerError
from serve_app.api_schemas import HealthReport, Video, VideoPage, to_health, to_page, to_video
from serve_app.http_errors import ERROR_RESPONSES, RETRY_AFTER_S
from serve_app.openai_videos import After, Limit, hint_poll, request_body_docs
from serve_app.request_body import read_fields
from serve_app.request_schema import request_schema
from serve_app.services import Order, Services
from serve_app.video_content import CONTENT_RESPONSES, ContentVariant, send_content
from serve_app.video_requests import VideoRequests


class SimpleRoutes:
    """The handlers; `add_to` gives them their routes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        schema = request_schema(services.settings.model, "GenerateRequest", prompt_field="text")
        self._requests = VideoRequests(services.settings.model, schema, services.count_tokens)

    def add_to(self, app: FastAPI) -> None:
        docs: dict[str, Any] = {"tags": ["short"], "responses": ERROR_RESPONSES}
        content = {**docs, "responses": {**CONTENT_RESPONSES, **ERROR_RESPONSES}, "response_class": Response}
        generate = {**docs, "openapi_extra": request_body_docs(self._requests.schema), "status_code": 202}
        health = {**docs, "responses": {**ERROR_RESPONSES, 503: {"model": HealthReport}}}
        app.add_api_route("/generate", self.generate, methods=["POST"], **generate)
        app.add_api_route("/status/{video_id}", self.status, methods=["GET"], **docs)
        app.add_api_route("/cancel/{video_id}", self.cancel, methods=["POST"], **docs)
        app.add_api_route("/download/{video_id}", self.download, methods=["GET"], **content)
        app.add_api_route("/download/{video_id}", self.download, methods=["HEAD"], include_in_schema=False)
        app.add_api_route("/jobs", self.jobs, methods=["GET"], **docs)
        app.add_api_route("/health", self.health, methods=["GET"], **health)

    async def generate(self, request: Request, response: Response) -> Video:
        """Accept a video to be made; answers at once with its id, before any work."""
        fields = await read_fields(request, self._services.settings.ingress.max_body_bytes)
        job = await self._services.submit(self._requests.spec(fields))
        response.headers["Location"] = f"/status/{job.id}"
        return to_video(job)

    async def status(self, video_id: str, response: Response) -> Video:
        """Tell the state of a video."""
        job = await self._services.job(video_id)
        hint_poll(job, response)
        return to_video(job)

    async def cancel(self, video_id: str) -> Video:
        """Stop the making of a video at its next step; 409 if it is completed or failed."""
        return to_video(await self._services.cancel(video_id))

    async def download(self, request: Request, video_id: str, variant: ContentVariant = "video") -> Response:
        """Download the mp4 or the poster of a completed video, or the newest preview of one that is being sampled.

        The files take Range, If-Range and If-None-Match; the preview is sent whole.
        """
        return await send_content(self._services, request, video_id, variant)

    async def jobs(self, limit: Limit = 20, after: After = None, order: Order = "desc") -> VideoPage:
        """List videos by their time of creation."""
        page = await self._services.page(limit, after, order)
        return to_page(page.jobs, page.has_more)

    async def health(self, response: Response) -> HealthReport:
        """Tell whether videos can be made now: 503 until each stage has a replica and the store answers."""
        report = to_health(await self._services.health(), await self._storage_state())
        if report.error is not None:
            response.status_code = 503
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return report

    async def _storage_state(self) -> str:
        try:
            await self._services.storage.ping()
        except WorkerError as error:
            return error.message
        return "ok"
