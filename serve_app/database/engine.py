"""What differs between SQLite and Postgres: how to connect, what an error means, and INSERT with ON CONFLICT."""

import sqlite3
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.script
import alembic.util
from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from deployments.errors import RegistryUnavailableError
from serve_app.database.sqlite_file import DAMAGED, database_file, make_private

_MIGRATION_LOCK = 0x6D6F636869  # any constant: two registries that start at once migrate one after the other
_WROTE = "wrote"
_CONFLICTS = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
# A server that is gone without a word is noticed within seconds, not after the system's two hours.
_CONNECT_ARGS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000")


def open_engine(url: str) -> Engine:
    """An engine of one connection. Parameters of the URL take precedence over our own."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(url, pool_size=1, max_overflow=0)
        _prepare_sqlite(engine)
    else:
        connect_args = {name: value for name, value in _CONNECT_ARGS.items() if name not in parsed.query}
        engine = create_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=True, connect_args=connect_args)
    event.listen(engine, "before_cursor_execute", _note_write)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest version; safe to call from several processes at once.

    Raises:
        RegistryUnavailableError: there is no way there; most likely a newer version has used the database.
    """
    config = _alembic_config()
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            alembic.command.upgrade(config, "head")
        except alembic.util.CommandError as error:
            raise RegistryUnavailableError(
                f"the job database does not work: its schema is none that this version knows ({error}); start the "
                "version that used it last, or put a backup of before in its place"
            ) from error


def schema_revisions() -> tuple[str, ...]:
    """The versions of the schema that this code knows, the newest first."""
    scripts = alembic.script.ScriptDirectory.from_config(_alembic_config())
    return tuple(script.revision for script in scripts.walk_revisions())


def _alembic_config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """INSERT that takes ON CONFLICT; SQLite and Postgres spell it alike, SQLAlchemy has it in each dialect."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def has_written(connection: Connection) -> bool:
    """Whether anything but a SELECT was run on the connection since `forget_writes`."""
    wrote: bool = connection.info.get(_WROTE, False)
    return wrote


def forget_writes(connection: Connection) -> None:
    """See `has_written`."""
    connection.info[_WROTE] = False


def is_conflict(error: Exception) -> bool:
    """Two transactions were in each other's way: this one was rolled back and may be run again."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _CONFLICTS


def is_outage(error: Exception) -> bool:
    """The database is away, locked or full; the statement itself is not wrong."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError | InterfaceError) and not _is_wrong_sql(error)


def is_damage(error: Exception) -> bool:
    """The file of the database holds something else than it should."""
    original = error.orig if isinstance(error, DBAPIError) else None
    return getattr(original, "sqlite_errorcode", None) in DAMAGED


def is_full(error: Exception) -> bool:
    """The database has no space to write. It can still be read."""
    original = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return str(getattr(original, "sqlstate", None) or "").startswith("53100")


def _prepare_sqlite(engine: Engine) -> None:
    file = database_file(engine.url)
    if file is not None:
        make_private(file)

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


def _is_wrong_sql(error: DBAPIError) -> bool:
    """SQLite reports wrong SQL with the same class of error as an outage."""
    return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
