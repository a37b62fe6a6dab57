"""What is checked before anything starts. Each failure is a StartupError of one line that says what to do."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serve_app.errors import StartupError
from serve_app.local.ports import LOOPBACK, holder, is_free


def check_ports(needed: Mapping[int, str], host: str = LOOPBACK) -> None:
    """Raises StartupError for the first port that is taken. needed: port -> what it is for and how to change it."""
    for port, purpose in needed.items():
        if not is_free(port, host):
            raise StartupError(f"port {port} is taken by {holder(port)}; it is needed for {purpose}")


def check_disk(data_dir: Path, min_free_mb: int) -> None:
    """Make the data folder and see that it can be written and has room, in MB of a million bytes.

    Raises:
        StartupError: it cannot be made or written, or less than min_free_mb is free.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        probe = data_dir / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
        free_mb = shutil.disk_usage(data_dir).free // 1_000_000
    except OSError as error:
        raise StartupError(
            f"cannot write in the data folder {data_dir} ({error.strerror}); name another one with --data"
        ) from error
    if free_mb < min_free_mb:
        raise StartupError(
            f"the disk of the data folder {data_dir} has {free_mb} MB free, {min_free_mb} MB are needed; "
            "free some space, name another folder with --data or lower min_free_disk_mb"
        )


@contextmanager
def data_folder_lock(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process; the kernel lets go of it however the process ends.

    Raises:
        StartupError: another server holds it; names its process.
    """
    path = data_dir / "lock"
    lock = _lock(path)
    try:
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _lock(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise StartupError(
                f"another server (process {owner or 'unknown'}) works on the data folder {path.parent}; "
                "stop it or name another folder with --data"
            ) from None
        if _is_same_file(lock, path):
            return lock
        # Its last holder removed the file between our open and our lock.
        os.close(lock)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
