"""Real parts: an object store, databases, routes behind sockets."""

from pathlib import Path

import pytest

from tests.support.http.api_stand_in import api
from tests.support.http.fixtures import client, services, unfed
from tests.support.servers.postgres import postgres_uri
from tests.support.servers.storage import local_port, object_store, storage_settings

__all__ = [
    "api",
    "client",
    "local_port",
    "object_store",
    "postgres_uri",
    "services",
    "storage_settings",
    "unfed",
]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """An empty SQLite: tests/database tests the SQL on Postgres as well."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"
