"""HEAD wherever there is a GET: the same answer without its body (RFC 9110, 9.3.2). Proxies and monitors ask so."""

from collections.abc import Sequence

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def head_routes(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """A route for HEAD beside each declared route for GET that has none, in the same order.

    The handler is that of GET and may look at the method. The OpenAPI document does not list them: they say nothing
    that GET does not say.
    """
    declared = [route for route in routes if isinstance(route, APIRoute)]
    there = {route.path for route in declared if "HEAD" in (route.methods or ())}
    return [
        Route(route.path, _WithoutBody(route.app), methods=["HEAD"], include_in_schema=False)
        for route in declared
        if "GET" in (route.methods or ()) and route.path not in there
    ]


class _WithoutBody:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app(scope, receive, send_head)
