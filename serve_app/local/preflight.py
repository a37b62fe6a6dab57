"""What is checked before anything starts. Each failure is a StartupError of one line that says what to do.

TCP ports of this machine: is one free, and who holds it.
"""

import contextlib
import fcntl
import os
import random
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve_app.errors import StartupError

LOOPBACK = "127.0.0.1"
# All are above the ports of Ray's workers (10002 to 19999), below those of Serve's replicas (from 30000) and those that
# the system gives to clients (from 32768 on Linux); apart from each other, because a port is bound only some time after
# it was chosen.
SINGLE = range(20_000, 21_000)
# With an offset of 10,000, the second port is below the system's too, and above those of a few replicas.
PAIRED = range(21_000, 22_700)
_LISTEN = "0A"


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port now. A port in TIME_WAIT counts as free, as it does for servers."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
            s.listen(1)
        except OSError:
            return False
    return True


def free_ports(count: int, among: Sequence[int] = SINGLE) -> list[int]:
    """Ports that were free a moment ago, all different, from a range where nobody takes one by chance meanwhile."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(among)
        if port not in found and is_free(port):
            found.append(port)
    return found


def free_pair(offset: int) -> int:
    """A port p for which both p and p + offset were free a moment ago."""
    while True:
        (port,) = free_ports(1, PAIRED)
        if is_free(port + offset):
            return port


def holder(port: int) -> str:
    """Who listens on the port, for people: ``process 4711 (nginx)``, or ``another process`` where /proc hides it."""
    inodes = _listening_inodes(port)
    for pid in _pids():
        if inodes & _socket_inodes(pid):
            return f"process {pid} ({_name(pid)})"
    return "another process"


def _listening_inodes(port: int) -> set[str]:
    """Lines of /proc/net/tcp: index, local address:port in hex, remote, state, ..., inode in column 9."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _lines(Path(table))[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _pids() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return []


def _socket_inodes(pid: int) -> set[str]:
    """Empty for the processes of other users, whose files are hidden."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            # It may have been closed since it was listed.
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(fd))
    return found


def _name(pid: int) -> str:
    return "".join(_lines(Path(f"/proc/{pid}/comm"))) or "unknown"


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
