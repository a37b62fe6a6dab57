"""A way past FastAPI's parameters for the read that clients repeat most.

To solve the declared parameters of a GET takes FastAPI longer than all that is done for it otherwise. A request that
gives none of them, as nearly every poll, is answered without; all others, and the OpenAPI document, go the common way.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serve_app.access.tenants import Caller
from serve_app.ingress.authentication import plain_caller

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
