"""The short routes for people and scripts, and /health.

OpenAI's routes for what Mochi cannot do: a clear refusal, where a 404 would look like a wrong address.
"""

from typing import Any

from fastapi import FastAPI, Request, Response

from deployments.errors import WorkerError
from serve_app.errors import InvalidRequestError
from serve_app.ingress.authentication import REPLAYED_DOCS
from serve_app.ingress.error_answers import RETRY_AFTER_S
from serve_app.ingress.services import Services
from serve_app.ingress.videos import Asker, OpenAIVideos
from serve_app.openapi.errors import (
    CONFLICTING_PARAMETERS,
    CREATE_ERRORS,
    REGISTRY_UNAVAILABLE,
    UNSUPPORTED_OPERATION,
    VIDEO_FINAL,
    VIDEO_NOT_FOUND,
    WRITE_ERRORS,
    error_responses,
)
from serve_app.openapi.schemas import ErrorEnvelope, HealthReport, Video
from serve_app.openapi.views import to_health
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import VideoRequests

LOCATION_DOCS = {"Location": {"description": "where to ask about it", "schema": {"type": "string"}}}
NOT_READY = "No videos can be made now, and what is missing; an ErrorEnvelope if even that cannot be told"


class SimpleRoutes:
    """Short paths to the handlers of `videos`, and the handlers that are its own; `add_to` gives all their routes."""

    def __init__(self, services: Services, videos: OpenAIVideos) -> None:
        self._services = services
        self._videos = videos
        schema = request_schema(services.settings.model, "GenerateRequest", prompt_field="text")
        self._requests = VideoRequests(services.settings.model, schema, services.count_tokens)

    def add_to(self, app: FastAPI) -> None:
        videos = self._videos
        generate = videos.accept_docs(self._requests.schema, 202, CREATE_ERRORS)
        generate["responses"][202]["headers"] = REPLAYED_DOCS | LOCATION_DOCS
        app.add_api_route("/generate", self.generate, methods=["POST"], tags=["short"], **generate)
        for method, path, handler, name, refusals in (
            ("POST", "/cancel/{video_id}", videos.cancel, "cancel", (VIDEO_NOT_FOUND, VIDEO_FINAL, *WRITE_ERRORS)),
            ("GET", "/jobs", videos.list, "jobs", (CONFLICTING_PARAMETERS,)),
        ):
            app.add_api_route(
                path, handler, methods=[method], name=name, tags=["short"], responses=error_responses(*refusals)
            )
        videos.add_retrieve(app, "/status/{video_id}", "short", "status")
        videos.add_content(app, "/download/{video_id}", "short", "download")
        health = error_responses(REGISTRY_UNAVAILABLE, needs_key=False)
        health[503] |= {"model": HealthReport | ErrorEnvelope, "description": NOT_READY}
        # FastAPI writes the model's in its place.
        del health[503]["content"]["application/json"]["schema"]
        app.add_api_route("/health", self.health, methods=["GET"], tags=["short"], responses=health)

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


UNSUPPORTED = {
    "/v1/videos/edits": ("POST", "edit a video; remix it with another prompt: POST /v1/videos/{video_id}/remix"),
    "/v1/videos/extensions": ("POST", "extend a video; ask for a longer one with 'seconds' or 'num_frames'"),
    "/v1/videos/characters": ("POST", "keep characters; describe them in the prompt"),
    "/v1/videos/characters/{character_id}": ("GET", "keep characters; describe them in the prompt"),
}

_CHARACTER = [{"name": "character_id", "in": "path", "required": True, "schema": {"type": "string"}}]


def add_unsupported_routes(app: FastAPI) -> None:
    for path, (method, what) in UNSUPPORTED.items():
        name = f"{method.lower()}_{path.removeprefix('/v1/videos/').partition('/')[0]}"
        docs: dict[str, Any] = {
            "openapi_extra": {"parameters": _CHARACTER} if "{" in path else {},
            "tags": ["unsupported"],
            "status_code": 400,
            "response_model": ErrorEnvelope,
            "responses": error_responses(UNSUPPORTED_OPERATION, *(WRITE_ERRORS if method == "POST" else ())),
        }
        app.add_api_route(path, _refusal(what), methods=[method], name=name, **docs)


def _refusal(what: str) -> Any:
    async def refuse(caller: Asker) -> None:
        raise InvalidRequestError(f"This model cannot {what}.", None, "unsupported_operation")

    refuse.__doc__ = "Not supported by this model: answered with 400."
    return refuse
