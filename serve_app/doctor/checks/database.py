"""The database of jobs: reachable, whole, of a schema that this version knows, and in time."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from deployments.errors import MochiServeError
from serve_app.database.engine import schema_revisions
from serve_app.database.inspection import DatabaseLook, look_at_postgres, look_at_sqlite
from serve_app.database.sqlite_file import check_undamaged, database_file
from serve_app.doctor.checks.clock import clock_finding
from serve_app.doctor.checks.folders import NETWORK_FILESYSTEMS, filesystem_type
from serve_app.doctor.finding import Finding, State, fault, ok, skipped, split_fault, warning
from serve_app.doctor.surroundings import Surroundings
from serve_app.errors import StartupError

OLDER = "start the version of mochi-serve that used it last (see CHANGELOG.md), or put a backup of before in its place"


def check_database(s: Surroundings) -> Iterator[Finding]:
    """SQLite is only read while a server has it open: a second writer would keep it waiting."""
    path = database_file(s.settings.database_url)
    yield from _sqlite(s, path) if path is not None else _postgres(s)


def _sqlite(s: Surroundings, path: Path) -> Iterator[Finding]:
    kind = filesystem_type(path, s.root)
    if kind in NETWORK_FILESYSTEMS or kind.startswith("fuse.sshfs"):
        told = f"{path} lies on a network file system ({kind}), where SQLite's locks and shared memory do not work"
        yield fault("database", told, "name a data folder on a disk of this machine, or take PostgreSQL")
        return
    if not path.exists():
        yield ok("database", f"SQLite at {path}, which the first start makes")
        yield from (skipped(name, "there is no database yet") for name in ("database_schema", "database_clock"))
        return
    try:
        check_undamaged(path, in_use=s.data_in_use)
        look = look_at_sqlite(path, in_use=s.data_in_use)
    except StartupError as error:
        yield split_fault("database", str(error))
        return
    except sqlite3.Error as error:
        yield fault("database", f"{path} cannot be read: {error}", "see its owner and mode, and the room on its disk")
        return
    if look.refusal:
        yield fault("database", f"{path} takes no write: {look.refusal}", "end who holds it, or see its owner and mode")
        return
    how = "read only, as a server has it open" if s.data_in_use else "takes a write"
    if kind in ("tmpfs", "ramfs"):
        told = f"{path} lies in memory ({kind}) and is gone with the machine"
        yield warning("database", told, "name a data folder on a disk, unless that is meant")
    else:
        yield ok("database", f"SQLite at {path} is whole ({how})")
    yield _schema(s, look)
    yield skipped("database_clock", "SQLite has this machine's clock")


def _postgres(s: Surroundings) -> Iterator[Finding]:
    try:
        before = s.unix_time()
        look = look_at_postgres(s.settings.database_url)
        after = s.unix_time()
    except DBAPIError as error:
        told = " ".join(str(error.orig).split())
        advice = "check database.url: host, port, name, user, password; see that the server runs and lets us in"
        yield fault("database", f"PostgreSQL refuses or is away: {told}", advice)
        return
    except MochiServeError as error:
        yield fault("database", str(error), OLDER)
        return
    if look.refusal:
        told = f"PostgreSQL takes no write: {' '.join(look.refusal.split())}"
        yield fault("database", told, "connect to the primary, and make the user the owner of the database")
        return
    yield ok("database", "PostgreSQL takes a write")
    yield _schema(s, look)
    if look.unix_time is not None:
        yield clock_finding("database_clock", "the database", look.unix_time, before, after)


def _schema(s: Surroundings, look: DatabaseLook) -> Finding:
    newest, *_ = known = schema_revisions()
    if look.revision is None:
        return ok("database_schema", f"it is empty; the first start makes the tables ({newest})")
    if look.revision not in known:
        told = f"its schema is {look.revision}, which this version does not know; it knows up to {newest}"
        return fault("database_schema", told, OLDER)
    if look.revision == newest:
        return ok("database_schema", newest)
    state = State.WARNING if s.server is not None else State.OK
    advice = "restart the server with this version" if s.server is not None else ""
    told = f"its schema is {look.revision}; a start brings it to {newest}"
    return Finding("database_schema", state, told, advice)
