"""The page /metrics, and the counting of requests.

What is counted of a request is the pattern of its route, never its path: clients make up paths.
"""

import asyncio
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from deployments.metrics import names
from deployments.metrics.recorder import RECORDER, Number, Observations
from serve_app.errors import PermissionDeniedError
from serve_app.ingress.authentication import TENANT_HEADER, authenticate, bearer, shown_key
from serve_app.ingress.services import services_of
from serve_app.metrics.page import render_page
from serve_app.openapi.errors import METRICS_ERRORS, Responses, error_responses

UNMATCHED = "unmatched"
MOST_SERIES = 1000  # that are kept at hand: clients may make up methods
TEXT = {"schema": {"type": "string"}}
FORMATS = ("text/plain", "application/openmetrics-text")

router = APIRouter(tags=["short"])


async def check_reader(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> None:
    """Whether the page may be read.

    Raises:
        UnauthenticatedError, RateLimitError: as `authenticate` does.
        PermissionDeniedError: the key is of a tenant that may not.
    """
    settings = services_of(request).settings.metrics
    if settings.open:
        return
    key = await shown_key(request, credentials)
    caller = await authenticate(key, request.headers.get(TENANT_HEADER))
    if key is not None and caller.tenant not in settings.readers:
        allowed = ", ".join(settings.readers) or "none"
        raise PermissionDeniedError(
            f"The metrics tell of all tenants, and keys of this one may not read them; its operator makes a key of a "
            f"tenant that may (metrics.readers: {allowed}).",
            code="metrics_not_allowed",
        )


_RESPONSES: Responses = {
    200: {
        "description": "Text format 0.0.4, or OpenMetrics where Accept asks for it",
        "content": dict.fromkeys(FORMATS, TEXT),
    },
    **error_responses(*METRICS_ERRORS),
}


@router.get("/metrics", responses=_RESPONSES, response_class=Response)
async def metrics(request: Request, _: Annotated[None, Depends(check_reader)]) -> Response:
    """The server's own metrics for Prometheus: jobs, queue, steps, checkpoints, storage, requests, devices."""
    values = await services_of(request).registry.metrics()
    page, content_type = await asyncio.to_thread(render_page, values, request.headers.get("accept", ""))
    return Response(page, headers={"content-type": content_type, "cache-control": "no-store"})


class RequestCounts:
    """Counts each answer, and how long its first byte took. prefix: of the application, before the routes' paths."""

    def __init__(self, routes: Iterable[BaseRoute], prefix: str = "") -> None:
        # FastAPI says which of its routes it took. Of the others the endpoint does, which none of them share.
        self._prefix = prefix
        self._paths: dict[Any, str] = {route.endpoint: route.path for route in routes if type(route) is Route}
        self._series: dict[tuple[str, str, int], tuple[Number, Observations]] = {}

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """As `authentication.OnAnswer`."""
        route = scope.get("route")
        own = route.path if route is not None else self._paths.get(scope.get("endpoint"), UNMATCHED)
        path = own if own is UNMATCHED else self._prefix + own
        asked = path, scope["method"], status
        series = self._series.get(asked)
        if series is None:
            number = RECORDER.number(names.HTTP_REQUESTS, path, scope["method"], str(status))
            series = number, RECORDER.observations(names.HTTP_SECONDS, path)
            if len(self._series) < MOST_SERIES:
                self._series[asked] = series
        requests, times = series
        times.observe(seconds)
        requests.add()
