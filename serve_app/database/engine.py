"""What differs between SQLite and Postgres: how to connect, and what an error of theirs means.

INSERT with ON CONFLICT, which SQLite and Postgres spell alike and SQLAlchemy has in each dialect.
"""

import sqlite3
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

_MIGRATION_LOCK = 0x6D6F636869  # any constant: two registries that start at once migrate one after the other
_WROTE = "wrote"
_CONFLICTS = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
# A server that is gone without a word is noticed within seconds, not after the system's two hours.
_CONNECTING = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000")


def open_engine(url: str) -> Engine:
    """An engine of one connection; what the URL says of it goes before our own choice."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(url, pool_size=1, max_overflow=0)
        _prepare_sqlite(engine)
    else:
        chosen = {name: value for name, value in _CONNECTING.items() if name not in parsed.query}
        engine = create_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=True, connect_args=chosen)
    event.listen(engine, "before_cursor_execute", _note_write)
    return engine


def _prepare_sqlite(engine: Engine) -> None:
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN breaks savepoints
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _note_write(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
    if not statement.startswith("SELECT"):
        connection.info[_WROTE] = True


def wrote(connection: Connection, clear: bool = False) -> bool:
    """Whether anything but a SELECT was run on the connection since this was cleared."""
    known: bool = connection.info.get(_WROTE, False)
    if clear:
        connection.info[_WROTE] = False
    return known


def is_conflict(error: Exception) -> bool:
    """Two transactions were in each other's way: this one was rolled back and may be run again."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _CONFLICTS


def is_outage(error: Exception) -> bool:
    """The database is away, locked or full: it is not what was asked."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError | InterfaceError) and not _is_wrong_sql(error)


def is_full(error: Exception) -> bool:
    """No space to write. To read still works."""
    original = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return str(getattr(original, "sqlstate", None) or "").startswith("53100")


def _is_wrong_sql(error: DBAPIError) -> bool:
    """SQLite says so with the same class that it has for outages."""
    return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest version; safe to call from several processes at once."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
