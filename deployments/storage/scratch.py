"""Folders for files that nobody needs after the process; what a killed process left behind goes with the next one."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder(prefix: str, base: Path | None = None) -> Iterator[Path]:
    """A new folder, readable by its owner only and removed at the end. Those of dead processes are removed first.

    A lock that the kernel gives back with the process tells the living from the dead, also between containers.

    Args:
        prefix: of the folder's name; 8 characters follow.
        base: where it is made; the system's folder for temporary files without it.
    """
    base = base or Path(tempfile.gettempdir())
    remove_left(prefix, base)
    folder, lock = _locked_folder(prefix, base)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_left(prefix: str, base: Path) -> None:
    """Remove the folders that processes of this user left when they were killed."""
    for lock_file in base.glob(f"{prefix}????????/{LOCK}"):
        with contextlib.suppress(OSError):  # in use, gone in the meantime, or somebody else's
            lock = os.open(lock_file, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
            finally:
                os.close(lock)


def _locked_folder(prefix: str, base: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / LOCK).exists():  # else another process took it for a dead one's, just before the lock
                return folder, lock
        os.close(lock)
