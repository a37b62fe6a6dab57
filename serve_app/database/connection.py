"""One database connection on one thread, with group commit: what arrives together is committed together.

An operation is a plain function of a connection and its arguments. It may be run again after its
transaction was rolled back, so it must change nothing but the database. An operation that raises
does not undo the others of its group, and its caller gets no result before the commit that makes it
durable.
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
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from serve_app.database.engine import (
    forget_writes,
    has_written,
    is_conflict,
    is_damage,
    is_full,
    is_outage,
    migrate,
    open_engine,
)
from serve_app.database.jobs.totals import collecting_totals, forgetting_totals_of_failed
from serve_app.database.sqlite_file import OpenFile, database_file

P = ParamSpec("P")
T = TypeVar("T")
MAX_GROUP = 256  # operations in one transaction
MAX_RERUNS = 20  # of a transaction that was in another's way


class Database:
    """Runs operations in order on its own thread; the first one that reaches the database brings its schema up to date.

    The database may be away when this object is made: then operations fail until it is back.
    """

    def __init__(self, url: str) -> None:
        self.path = database_file(url)  # SQLite's; None for a database that is no file
        self._engine = open_engine(url)
        self._migrated = False
        self._file: OpenFile | None = None  # of SQLite, once it is open
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()  # None: close
        self._thread = threading.Thread(target=self._run_groups, name="database", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(connection, ...)` in a transaction; returns when it is committed.

        Raises:
            RegistryUnavailableError: the database is away, locked, full, damaged, or no longer the
                file that was opened. Nothing was written, unless the connection was lost in the
                very commit: then nobody knows.
            Exception: what the function raised; its changes are rolled back.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Operation(lambda connection: function(connection, *args, **kwargs), loop, future))
        try:
            result: T = await future
        except DBAPIError as error:
            if is_damage(error):
                raise RegistryUnavailableError(
                    "the job database is damaged; its operator stops the server and puts a backup in its place",
                    str(error.orig),
                ) from error
            if is_outage(error) or is_conflict(error):
                raise RegistryUnavailableError("the job database does not work", str(error.orig)) from error
            raise
        return result

    def close(self) -> None:
        """Finish what was queued and close the connection."""
        self._queue.put(None)
        self._thread.join()
        self._engine.dispose()

    def _run_groups(self) -> None:
        is_closing = False
        while not is_closing:
            group, is_closing = self._next_group()
            self._commit_or_fail(group)
            _count(group)
            _resolve(group)

    def _next_group(self) -> tuple[list["_Operation"], bool]:
        """Waits for the first operation and takes those that are queued behind it; and whether to close after them."""
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

    def _commit_or_fail(self, group: Sequence["_Operation"]) -> None:
        """Whatever happens, each operation has its result or its error afterwards."""
        if not group:
            return
        try:
            if not self._migrated:
                migrate(self._engine)
                self._migrated = True
                self._file = OpenFile(self.path) if self.path is not None else None
            self._check_file()
            with RECORDER.timing(names.DATABASE_SECONDS):
                self._commit(group)
            # What was written into a file that was deleted meanwhile is lost, and so nobody is told that it is there.
            self._check_file()
        except Exception as error:  # the transaction as a whole failed: none of it happened
            if len(group) > 1 and is_full(error):
                # A full database can still be read: operations that write nothing succeed on their
                # own.
                for operation in group:
                    self._commit_or_fail([operation])
            else:
                for operation in group:
                    operation.error = error

    def _check_file(self) -> None:
        if self._file is not None:
            self._file.check()

    def _commit(self, group: Sequence["_Operation"]) -> None:
        """Run the group in one transaction, and again if a transaction of another registry was in its way."""
        run_group = _run_together
        for rerun in range(MAX_RERUNS + 1):
            try:
                with self._engine.begin() as connection, collecting_totals(connection):
                    run_group(connection, group)
                return
            except _SpoiledError:
                run_group = _run_apart
            except DBAPIError as error:
                if rerun == MAX_RERUNS or not is_conflict(error):
                    raise


@dataclass(slots=True)
class _Operation:
    function: Callable[[Connection], Any]
    loop: asyncio.AbstractEventLoop  # of the caller
    future: asyncio.Future[Any]  # what the caller waits for
    result: Any = None
    error: Exception | None = None

    def run(self, connection: Connection) -> None:
        self.result = None
        self.error = None
        self.result = self.function(connection)

    def resolve(self) -> None:
        """Hand the result or the error to the caller. Call it in the caller's loop."""
        if self.future.done():  # the caller was cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class _SpoiledError(Exception):
    """An operation raised after it had written: its changes cannot be told from those of its group."""


def _run_together(connection: Connection, group: Sequence[_Operation]) -> None:
    """The fast way. An operation that raises before it writes, as refusals do, leaves nothing to undo."""
    for operation in group:
        forget_writes(connection)
        try:
            operation.run(connection)
        except Exception as error:
            if is_conflict(error) or is_outage(error):
                raise
            # After an error of its own, Postgres takes no further statement in the transaction.
            if isinstance(error, DBAPIError) or has_written(connection):
                raise _SpoiledError from error
            operation.error = error


def _run_apart(connection: Connection, group: Sequence[_Operation]) -> None:
    """The slow way: each operation in a savepoint of its own."""
    for operation in group:
        try:
            with connection.begin_nested(), forgetting_totals_of_failed(connection):
                operation.run(connection)
        except Exception as error:
            if is_conflict(error) or is_outage(error):
                raise
            operation.error = error


def _count(group: Sequence[_Operation]) -> None:
    """For the metrics. What the database or its connection raised is a failure, all else a refusal of its own."""
    for operation in group:
        away = isinstance(operation.error, DBAPIError | RegistryUnavailableError)
        outcome = "done" if operation.error is None else "failed" if away else "refused"
        RECORDER.count(names.DATABASE_OPERATIONS, outcome)


def _resolve(group: Sequence[_Operation]) -> None:
    """Hand the results to the callers: each event loop is woken once, not once for each operation."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Operation]] = defaultdict(list)
    for operation in group:
        by_loop[operation.loop].append(operation)
    for loop, operations in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve_here, operations)


def _resolve_here(operations: Sequence[_Operation]) -> None:
    for operation in operations:
        operation.resolve()
