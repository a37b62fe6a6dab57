"""Files and folders that belong to the server's owner alone, whatever the umask that it was started with."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serve_app.errors import StartupError

UMASK = 0o077
OLD_LOGS = 4
LOG_FILES = ("server.log", *(f"server.log.{number}" for number in range(1, OLD_LOGS + 1)))
"""Of the log, from the one that is written to the oldest."""
# All that a server makes in its data folder.
OWN_NAMES = frozenset(
    {
        "jobs.db",
        "jobs.db-wal",
        "jobs.db-shm",
        "lock",
        "objects",
        "objects-keys.json",
        "objects.lock",
        "objects.log",
        "objects.log.1",
        "ray-logs",
        "ray-token",
        *LOG_FILES,
        "sockets",
        "webhook-key",
        "writable",
    }
)
# The path of a socket is bounded, and Serve puts 56 characters of its own into that of HAProxy's metrics.
_MAX_BASE_CHARACTERS = 10


@contextlib.contextmanager
def owner_only() -> Iterator[None]:
    """What this process and those that it starts inside make is its owner's alone, unless a mode is set afterwards."""
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


def close_to_others(data_dir: Path) -> list[Path]:
    """Take from group and others what they may do with the data folder and what the server has in it.

    A folder that holds anything else stays as it is, and so does that: it may be somebody's home.

    Returns:
        What was open to others until now.
    """
    return [path for path in _own_paths(data_dir) if _close(path)]


def open_to_others(data_dir: Path) -> list[Path]:
    """What `close_to_others` would close."""
    return [path for path in _own_paths(data_dir) if _is_open(path)]


def _own_paths(data_dir: Path) -> list[Path]:
    entries = list(data_dir.iterdir())
    own = [entry for entry in entries if _is_own(entry.name)]
    return [*own, data_dir] if len(own) == len(entries) else own


def _is_own(name: str) -> bool:
    """Also of a file that was being written when its process was killed: `.jobs.db.x.new`, `.writable.4711`."""
    name = name.removeprefix(".")
    return any(name == own or name.startswith(f"{own}.") for own in OWN_NAMES)


def _is_open(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return not path.is_symlink() and bool(path.lstat().st_mode & UMASK)
    return False


def _close(path: Path) -> bool:
    """Whether it was open. One that is not this user's, or gone meanwhile, stays as it is."""
    if not _is_open(path):
        return False
    try:
        path.chmod(stat.S_IMODE(path.lstat().st_mode) & ~UMASK)
    except OSError:
        return False
    return True


def temp_base() -> Path:
    """Where files with sockets go: the system's folder for temporary files, unless its name does not fit them."""
    base = tempfile.gettempdir()
    return Path(base) if len(base) <= _MAX_BASE_CHARACTERS and " " not in base else Path("/tmp")


def make_private_folder(folder: Path) -> None:
    """Make the folder, for its owner only, unless it is there.

    Raises:
        StartupError: somebody else has made it, who could read what is put in.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise StartupError(f"{folder} belongs to somebody else; remove it, or give the data folder a shorter path")
    _close(folder)
