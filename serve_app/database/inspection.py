"""What a database says of itself to who only looks: nothing of it is changed, and none is made."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Connection, insert, inspect, text
from sqlalchemy.exc import DBAPIError

from serve_app.database.engine import open_engine
from serve_app.database.schema import meta
from serve_app.database.sqlite_file import connect

_REVISION = "SELECT version_num FROM alembic_version"


@dataclass(frozen=True, slots=True)
class DatabaseLook:
    """A database at a moment."""

    revision: str | None  # of its schema; None: it has no tables yet
    unix_time: float | None = None  # by its own clock; None: it has none
    refusal: str | None = None  # why it takes no write; None: it does, or was not asked


def look_at_sqlite(path: Path, *, in_use: bool) -> DatabaseLook:
    """The file's. in_use: whether a server has it open: then it is not asked for a write. Raises sqlite3.Error."""
    with closing(connect(path, in_use=in_use)) as connection:
        connection.isolation_level = None
        has_revision = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        row = connection.execute(_REVISION).fetchone() if has_revision else None
        refusal = None
        if not in_use:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                refusal = str(error)
        return DatabaseLook(row[0] if row else None, refusal=refusal)


def look_at_postgres(url: str) -> DatabaseLook:
    """The server's. A row is written and rolled back. Raises DBAPIError: it cannot be reached, or refuses us."""
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            now = float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
            tables = inspect(connection)
            row = connection.execute(text(_REVISION)).scalar() if tables.has_table("alembic_version") else None
            return DatabaseLook(row, now, _refusal(connection, tables.has_table(meta.name)))
    finally:
        engine.dispose()


def _refusal(connection: Connection, has_tables: bool) -> str | None:
    try:
        with connection.begin_nested() as savepoint:
            if has_tables:
                connection.execute(insert(meta), {"name": f"doctor:{uuid4().hex}", "value": ""})
            else:
                connection.execute(text(f"CREATE TABLE doctor_{uuid4().hex} (a integer)"))
            savepoint.rollback()
    except DBAPIError as error:
        return str(error.orig).strip()
    finally:
        connection.rollback()
    return None
