"""Clients of the app over services in memory, in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.ingress.app import create_app
from tests.support.http.fakes import FakeServices, MemoryRegistry


def told_first(registry: MemoryRegistry, app: ASGIApp) -> ASGIApp:
    """What a test did to the registry is known to its followers before the next request, as what clients write is."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and registry.reachable:
            await registry.feed.told()
        await app(scope, receive, send)

    return told


@asynccontextmanager
async def fed_client(services: FakeServices, raise_app_exceptions: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running app: its reads come from the registry's feed."""
    app = create_app(services)
    async with app.router.lifespan_context(app):
        await services.feed.access()  # the first word of the registry
        transport = httpx.ASGITransport(told_first(services.registry, app), raise_app_exceptions)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@asynccontextmanager
async def unfed_client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose feed does not run: each read asks the registry."""
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
