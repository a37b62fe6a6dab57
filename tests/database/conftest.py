"""Each test of the SQL runs on SQLite and on Postgres."""

from collections.abc import AsyncIterator

import pytest

from serve_app.database.connection import Database
from tests.support.servers.postgres import database_url, postgres_uri

__all__ = ["database_url", "postgres_uri"]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An empty database of each kind."""
    database = Database(database_url)
    yield database
    database.close()
