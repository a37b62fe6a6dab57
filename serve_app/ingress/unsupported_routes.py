"""OpenAI's routes for what Mochi cannot do: a clear refusal, where a 404 would look like a wrong address."""

from typing import Any

from fastapi import FastAPI

from serve_app.errors import InvalidRequestError
from serve_app.ingress.videos import Asker
from serve_app.openapi.errors import WRITING, errors
from serve_app.openapi.schemas import ErrorEnvelope

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
            "responses": errors("unsupported_operation", *(WRITING if method == "POST" else ())),
        }
        app.add_api_route(path, _refusal(what), methods=[method], name=name, **docs)


def _refusal(what: str) -> Any:
    async def refuse(caller: Asker) -> None:
        raise InvalidRequestError(f"This model cannot {what}.", None, "unsupported_operation")

    refuse.__doc__ = "Not supported by this model: answered with 400."
    return refuse
