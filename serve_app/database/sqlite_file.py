"""The file of a SQLite database: made for its owner alone, checked before a start, watched while it is open, whole
after a stop.
"""

import contextlib
import os
import sqlite3
import stat
import time
from pathlib import Path

from sqlalchemy import URL, make_url

from deployments.errors import RegistryUnavailableError
from serve_app.errors import StartupError

CHECK_S = 10.0
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Steps of SQLite's virtual machine between two looks at the clock: some milliseconds.
_STEPS = 100_000


def database_file(url: str | URL) -> Path | None:
    """The file of a database URL; None for Postgres."""
    parsed = make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def make_private(path: Path) -> None:
    """Make the folder and an empty file, for their owner alone, unless they are there.

    SQLite gives the two files beside it the same permissions. What cannot be made here cannot be opened, and whoever
    opens it is told why.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, stat.S_IRUSR | stat.S_IWUSR))


def check_undamaged(path: Path, check_s: float = CHECK_S, *, in_use: bool = False) -> None:
    """Look for damaged pages.

    Args:
        in_use: whether a server has it open: then it is only read.
        check_s: seconds that it may take; pages that were not reached then count as good.

    Raises:
        StartupError: there is one, or the file is no database, or cannot be read and written.
    """
    if not path.exists():
        return
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        raise StartupError(f"the database {path} is no file that this user can read and write; see its owner and mode")
    try:
        damage = _quick_check(path, check_s, in_use)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) not in DAMAGED:
            return  # what else is wrong with it, such as its permissions, the registry tells
        damage = str(error)
    if damage is not None:
        raise StartupError(
            f"the database {path} is damaged ({' '.join(damage.split())[:200]}); put a backup in its place, or save "
            f"what can be read with `sqlite3 {path} .recover`, or move it and the files {path.name}-* away to begin "
            "without jobs"
        )


def _quick_check(path: Path, check_s: float, in_use: bool) -> str | None:
    """The first damage that is found in the time; None if there is none."""
    deadline = time.monotonic() + check_s
    with contextlib.closing(connect(path, in_use=in_use)) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        try:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return None
    return None if found == "ok" else str(found)


def fold_wal(path: Path) -> None:
    """Write what lies in the file beside it into the database: the database alone is complete then.

    Raises:
        sqlite3.Error: it cannot be done. Nothing is lost: the next start reads both files.
    """
    if not path.is_file():
        return
    with contextlib.closing(connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def connect(path: Path, *, in_use: bool = False) -> sqlite3.Connection:
    """Without making a file that is not there. in_use: for reading alone. Raises sqlite3.Error."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={'ro' if in_use else 'rw'}", uri=True)


class OpenFile:
    """The files of a database that is open; SQLite itself does not notice when they are deleted or replaced."""

    def __init__(self, path: Path) -> None:
        beside = path.with_name(f"{path.name}-wal")
        self._files = {file: identity for file in (path, beside) if (identity := _identity(file)) is not None}

    def check(self) -> None:
        """Raises RegistryUnavailableError when one of the files is another one than it was at first, or none."""
        for file, identity in self._files.items():
            if _identity(file) != identity:
                raise RegistryUnavailableError(
                    f"the job database does not work: {file.name} was deleted or replaced while the server ran; stop "
                    "the server, put the file in place that is to be used, and start it again"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
