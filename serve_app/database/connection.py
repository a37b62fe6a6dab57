"""One database connection on one thread, with group commit: what arrives together is committed together.

An operation is a plain function of a connection and its arguments. It may be run again when its transaction was rolled
back, so it touches nothing but the database. One that raises takes nothing from the others, and no result is told
before the commit that makes it durable.
"""

import asyncio
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from deployments.errors import RegistryUnavailableError
from serve_app.database.engine import is_conflict, is_full, is_outage, migrate, open_engine, wrote

P = ParamSpec("P")
T = TypeVar("T")
MAX_GROUP = 256
MAX_RERUNS = 20


@dataclass(slots=True)
class _Operation:
    function: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: Exception | None = None

    def run(self, connection: Connection) -> None:
        self.result = self.error = None
        self.result = self.function(connection)

    def settle(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class _SpoiledError(Exception):
    """An operation raised after it had written: what the others of its group wrote cannot be told from its own."""


class Database:
    """Runs operations in order on its own thread; the first one that finds it there brings the schema up to date.

    A database that is away when this is made is no error here: it is one of the operations until it is back.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self._migrated = False
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="database", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(connection, ...)` in a transaction; returns when it is committed.

        Raises:
            RegistryUnavailableError: the database is away, locked or full. Nothing was written, unless the
                connection was lost in the very commit: then nobody knows.
            Exception: what the function raised; its changes are rolled back.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Operation(lambda connection: function(connection, *args, **kwargs), future, loop))
        try:
            result: T = await future
        except DBAPIError as error:
            if is_outage(error) or is_conflict(error):
                raise RegistryUnavailableError(f"the job database does not work: {error.orig}") from error
            raise
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
                self._complete(group)
                _tell(group)
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

    def _complete(self, group: Sequence[_Operation]) -> None:
        """Whatever happens, each operation has its result or its error."""
        try:
            self._migrate_once()
            self._commit(group)
        except Exception as error:  # the transaction as a whole failed: none of it happened
            if len(group) > 1 and is_full(error):  # what only reads still can
                for operation in group:
                    self._complete([operation])
            else:
                for operation in group:
                    operation.error = error

    def _migrate_once(self) -> None:
        if not self._migrated:
            migrate(self._engine)
            self._migrated = True

    def _commit(self, group: Sequence[_Operation]) -> None:
        """One transaction. What another registry's got in the way of is run again, for nothing of it happened."""
        run = _run_together
        for rerun in range(MAX_RERUNS + 1):
            try:
                with self._engine.begin() as connection:
                    run(connection, group)
                return
            except _SpoiledError:
                run = _run_apart
            except DBAPIError as error:
                if rerun == MAX_RERUNS or not is_conflict(error):
                    raise


def _run_together(connection: Connection, group: Sequence[_Operation]) -> None:
    """The fast way. Whoever raises before writing, as refusals do, leaves nothing behind."""
    for operation in group:
        wrote(connection, clear=True)
        try:
            operation.run(connection)
        except Exception as error:
            if is_conflict(error) or is_outage(error):
                raise
            if isinstance(error, DBAPIError) or wrote(connection):
                raise _SpoiledError from error
            operation.error = error


def _run_apart(connection: Connection, group: Sequence[_Operation]) -> None:
    """The slow way: each in a savepoint of its own."""
    for operation in group:
        try:
            with connection.begin_nested():
                operation.run(connection)
        except Exception as error:
            if is_conflict(error) or is_outage(error):
                raise
            operation.error = error


def _tell(group: Sequence[_Operation]) -> None:
    """Wake each event loop once, not once for each operation."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Operation]] = defaultdict(list)
    for operation in group:
        by_loop[operation.loop].append(operation)
    for loop, operations in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, operations)


def _settle(operations: Sequence[_Operation]) -> None:
    for operation in operations:
        operation.settle()
