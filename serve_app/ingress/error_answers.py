"""The one place that turns exceptions into HTTP answers, all in OpenAI's envelope."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from deployments.errors import RegistryUnavailableError, StorageUnavailableError, WorkerError
from serve_app.errors import (
    ApiError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    ServiceUnavailableError,
    quote,
)
from serve_app.openapi.schemas import ErrorEnvelope
from serve_app.openapi.views import to_error_body

log = logging.getLogger("ray.serve")

RETRY_AFTER_S = 2


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception of a route with the envelope."""
    for kind in (ApiError, HTTPException, RegistryUnavailableError, RequestValidationError, WorkerError, Exception):
        app.add_exception_handler(kind, _handle_error)


async def _handle_error(request: Request, error: Exception) -> Response:
    if request.method == "OPTIONS" and isinstance(error, HTTPException) and error.status_code == 405:
        # No route takes OPTIONS: any path that there is says so what it takes (RFC 9110, 9.3.7).
        return Response(status_code=204, headers={"Allow": _allow(request)})
    api_error = to_api_error(request, error)
    if api_error.status >= 500:
        log.error(f"{request.method} {request.url.path}: {type(error).__name__}: {error}")
    return error_response(api_error)


def error_response(error: ApiError) -> JSONResponse:
    """The error in OpenAI's envelope."""
    return JSONResponse(ErrorEnvelope(error=to_error_body(error)).model_dump(), error.status, error.headers)


def to_api_error(request: Request, error: Exception) -> ApiError:
    """The answer to an exception; one that nobody foresaw becomes a 500 without its details."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            return _routing_error(request, error)
        case RequestValidationError():
            return _invalid_parameter(error)
        case RegistryUnavailableError():
            return _unavailable(error.message, "registry_unavailable")
        case StorageUnavailableError():
            return _unavailable(error.message, error.code)
        case WorkerError(code="object_missing"):
            return NotFoundError("The file of this video is gone.", "video_id", "content_not_found")
        case WorkerError():
            return _unavailable(error.message, error.code)
    return ApiError("The server failed at this request; its log tells more under the id of the answer's X-Request-Id.")


def _unavailable(message: str, code: str) -> ServiceUnavailableError:
    return ServiceUnavailableError(message, code=code, headers={"Retry-After": str(RETRY_AFTER_S)})


def _routing_error(request: Request, error: HTTPException) -> ApiError:
    target = f"{request.method} {quote(request.url.path)[1:-1]}"
    if error.status_code == 404:
        return NotFoundError(f"Invalid URL ({target}); /openapi.json lists the routes.", code="unknown_url")
    if error.status_code == 405:
        allowed = _allow(request)
        return MethodNotAllowedError(f"Not allowed: {target}; allowed is {allowed}.", headers={"Allow": allowed})
    return InvalidRequestError(str(error.detail))


def _allow(request: Request) -> str:
    """All methods of a path: Starlette's own answer names only those of the first route that has it."""
    methods = {"OPTIONS"}
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


def _invalid_parameter(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return InvalidRequestError(f"Invalid '{name}': got {quote(first.get('input'))}. {first['msg']}.", name)
