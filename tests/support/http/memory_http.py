"""Clients of the app over services in memory, in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.ingress.app import create_app
from serve_app.ingress.services import Services
from tests.support.http.fakes import FakeServices, MemoryRegistry


def flush_before_requests(registry: MemoryRegistry, app: ASGIApp) -> ASGIApp:
    """Followers know what a test did to the registry before the next request, as they know what clients wrote."""

    async def flush_first(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and registry.reachable:
            await registry.feed.flush()
        await app(scope, receive, send)

    return flush_first


@asynccontextmanager
async def fed_client(services: FakeServices, raise_app_exceptions: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running app: its reads come from the registry's feed."""
    app = create_app(services)
    async with app.router.lifespan_context(app):
        await services.feed.access()  # the first word of the registry
        transport = httpx.ASGITransport(flush_before_requests(services.memory, app), raise_app_exceptions)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@asynccontextmanager
async def unfed_client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose feed does not run: each read asks the registry."""
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@asynccontextmanager
async def serving(services: Services, memory: MemoryRegistry) -> AsyncIterator[str]:
    """The app under uvicorn on a free port; gives its URL."""
    app = flush_before_requests(memory, create_app(services))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), "the server ended before it was ready"
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
