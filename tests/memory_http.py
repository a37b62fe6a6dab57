"""Clients of the app over services in memory, in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from serve_app.ingress import create_app
from tests.fakes import FakeServices


class ToldTransport(httpx.ASGITransport):
    """What a test did to the registry is known to its followers before the next request, as what clients write is."""

    def __init__(self, services: FakeServices, app: Any, raise_app_exceptions: bool = True) -> None:
        super().__init__(app, raise_app_exceptions)
        self._services = services

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._services.registry.reachable:
            await self._services.registry.feed.told()
        return await super().handle_async_request(request)


@asynccontextmanager
async def fed_client(services: FakeServices, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running app: its reads come from the registry's feed. options: as ToldTransport has them."""
    app = create_app(services)
    async with app.router.lifespan_context(app):
        await services.feed.access()  # the first word of the registry
        transport = ToldTransport(services, app, **options)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@asynccontextmanager
async def unfed_client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose feed does not run: each read asks the registry."""
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
