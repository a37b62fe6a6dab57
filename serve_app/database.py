"""One database connection on one thread, with group commit: what arrives together is committed together.

An operation is a plain function of a connection and its arguments. Each runs in a savepoint of its own, so that one
that raises takes nothing from the others, and no result is told before the commit that makes it durable.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import InterfaceError, OperationalError

from deployments.errors import RegistryUnavailableError

T = TypeVar("T")
MAX_GROUP = 256
_MIGRATION_LOCK = 0x6D6F636869  # any constant: two registries that start at once migrate one after the other


@dataclass(slots=True)
class _Operation:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: BaseException | None = None

    def resolve(self) -> None:
        self.loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Database:
    """Runs operations in order on its own thread. Opening it brings the schema to the newest version."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        migrate(self._engine)
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="database", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """`function(connection, *args)` in a transaction; returns when it is committed.

        Raises:
            RegistryUnavailableError: the database is away, locked or full; nothing was written.
            Exception: what the function raised; its changes are rolled back.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Operation(function, args, future, loop))
        try:
            result: T = await future
        except (OperationalError, InterfaceError) as error:
            raise RegistryUnavailableError(f"the job database does not work: {error.orig}") from error
        return result

    def close(self) -> None:
        """Finish what was queued and close the connection."""
        self._queue.put(None)
        self._thread.join()
        self._engine.dispose()

    def _work(self) -> None:
        while True:
            group, closing = self._next_group()
            if group:
                self._commit(group)
            if closing:
                return

    def _next_group(self) -> tuple[list[_Operation], bool]:
        group: list[_Operation] = []
        item = self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) == MAX_GROUP:
                return group, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_Operation]) -> None:
        try:
            with self._engine.begin() as connection:
                for operation in group:
                    _run_one(connection, operation)
        except Exception as error:  # the transaction as a whole failed: none of it happened
            for operation in group:
                operation.error = error
        for operation in group:
            operation.resolve()


def _run_one(connection: Connection, operation: _Operation) -> None:
    try:
        with connection.begin_nested():
            operation.result = operation.function(connection, *operation.args)
    except Exception as error:
        if connection.invalidated or not connection.in_transaction():
            raise
        operation.error = error


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    return engine


def _prepare_sqlite(engine: Engine) -> None:
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN breaks savepoints
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest version; safe to call from several processes at once."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")
