"""The short routes for people and scripts, and /health."""

from typing import Any

from fastapi import FastAPI, Request, Response

from deployments.errors import WorkerError
from serve_app.api_schemas import ErrorEnvelope, HealthReport, Video, to_health
from serve_app.http_errors import ERROR_RESPONSES, RETRY_AFTER_S
from serve_app.openai_videos import CONTENT_DOCS, Asker, OpenAIVideos, accept_docs
from serve_app.request_schema import request_schema
from serve_app.services import Services
from serve_app.video_requests import VideoRequests


class SimpleRoutes:
    """Short paths to the handlers of `videos`, and the handlers that are its own; `add_to` gives all their routes."""

    def __init__(self, services: Services, videos: OpenAIVideos) -> None:
        self._services = services
        self._videos = videos
        schema = request_schema(services.settings.model, "GenerateRequest", prompt_field="text")
        self._requests = VideoRequests(services.settings.model, schema, services.count_tokens)

    def add_to(self, app: FastAPI) -> None:
        docs: dict[str, Any] = {"tags": ["short"], "responses": ERROR_RESPONSES}
        generate = {**docs, **accept_docs(self._requests.schema, 202)}
        health = {**docs, "responses": {**ERROR_RESPONSES, 503: {"model": HealthReport | ErrorEnvelope}}}
        videos, download = self._videos, "/download/{video_id}"
        app.add_api_route("/generate", self.generate, methods=["POST"], **generate)
        app.add_api_route("/status/{video_id}", videos.retrieve, methods=["GET"], name="status", **docs)
        app.add_api_route("/cancel/{video_id}", videos.cancel, methods=["POST"], name="cancel", **docs)
        app.add_api_route(download, videos.content, methods=["GET"], name="download", **{**docs, **CONTENT_DOCS})
        app.add_api_route(download, videos.content, methods=["HEAD"], include_in_schema=False)
        app.add_api_route("/jobs", videos.list, methods=["GET"], name="jobs", **docs)
        app.add_api_route("/health", self.health, methods=["GET"], **health)

    async def generate(self, request: Request, response: Response, caller: Asker) -> Video:
        """Accept a video to be made; answers at once with its id, before any work."""
        video = await self._videos.accept(self._requests.check, request, response, caller)
        response.headers["Location"] = f"/status/{video.id}"
        return video

    async def health(self, response: Response) -> HealthReport:
        """Tell whether videos can be made now: 503 until each stage has a replica and the stores work."""
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
