"""Fixtures of tests that speak to the routes, over services in memory."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.support.http.fakes import FakeServices
from tests.support.http.memory_http import fed_client, unfed_client


@pytest.fixture
def services() -> Iterator[FakeServices]:
    """What the routes work with, in memory. A test leaves no download open."""
    made = FakeServices()
    yield made
    assert made.store.open_streams == 0


@pytest.fixture
async def client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app over `services`; it reads from the registry's feed, as in a running server."""
    async with fed_client(services) as client:
        yield client


@pytest.fixture
async def unfed(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """The same where the feed does not run: each read asks the registry."""
    async with unfed_client(services) as client:
        yield client
