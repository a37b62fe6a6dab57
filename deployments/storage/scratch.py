"""Folders of a process for files that nobody needs afterwards."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder(prefix: str, base: Path | None = None) -> Iterator[Path]:
    """A new folder, readable by its owner only and removed at the end.

    Folders that killed processes left behind are removed first. A lock, which the kernel releases
    with the process, tells a living owner from a dead one, also between containers.

    Args:
        prefix: of the folder's name; 8 characters follow.
        base: where it is made; the system's folder for temporary files without it.
    """
    base = base or Path(tempfile.gettempdir())
    remove_abandoned(prefix, base)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        lock = FileLock(folder / LOCK, blocking=False)
        with contextlib.suppress(Timeout):  # another process took it for a dead one's, just before the lock
            lock.acquire()
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def remove_abandoned(prefix: str, base: Path) -> None:
    """Remove the folders that processes of this user left when they were killed."""
    for lock_file in base.glob(f"{prefix}????????/{LOCK}"):
        # In use (a Timeout is an OSError), gone in the meantime, or somebody else's.
        with contextlib.suppress(OSError), FileLock(lock_file, blocking=False):
            shutil.rmtree(lock_file.parent, ignore_errors=True)
