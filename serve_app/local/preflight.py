"""What is checked before a start: ports, disk and data folder.

Each failure is a StartupError of one line that says what to do.
"""

import contextlib
import os
import random
import resource
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from serve_app.config import AppSettings
from serve_app.errors import StartupError

LOOPBACK = "127.0.0.1"
# All are above the ports of Ray's workers (10002 to 19999), below those of Serve's replicas (from 30000) and those that
# the system gives to clients (from 32768 on Linux); apart from each other, because a port is bound only some time after
# it was chosen.
SINGLE = range(20_000, 21_000)
# With an offset of 10,000, the second port is below the system's too, and above those of a few replicas.
PAIRED = range(21_000, 22_700)
# A server that ends at this moment has this long to release its data folder.
LOCK_TIMEOUT_S = 0.2
# Ray's and the object store's processes keep some hundred files and connections open.
MIN_OPEN_FILES = 1024
# Of Ray's own store, in /dev/shm: what crosses processes is small.
OBJECT_STORE_BYTES = 150_000_000


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


def listener(port: int) -> psutil.Process | None:
    """Who listens on the port; None where nobody does, or it is hidden from this user."""
    with contextlib.suppress(psutil.Error):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.pid and found.laddr and found.laddr.port == port:
                return psutil.Process(found.pid)
    return None


def holder(port: int) -> str:
    """Who listens on the port, for people: ``process 4711 (nginx)``, or ``another process`` where it is hidden."""
    with contextlib.suppress(psutil.Error):
        if (process := listener(port)) is not None:
            return f"process {process.pid} ({process.name()})"
    return "another process"


def check_ports(needed: Mapping[int, str], host: str = LOOPBACK) -> None:
    """Check that nobody listens on these ports.

    Args:
        needed: what each port is for, and how to change it.
        host: the address that they are needed on.

    Raises:
        StartupError: for the first port that is taken; names who holds it.
    """
    for port, purpose in needed.items():
        if not is_free(port, host):
            raise StartupError(f"port {port} is taken by {holder(port)}; it is needed for {purpose}")


def check_disk(data_dir: Path, min_free_mb: int) -> None:
    """Make the data folder and check that it can be written and has room.

    Args:
        data_dir: the data folder.
        min_free_mb: free space that is needed, in MB of a million bytes.

    Raises:
        StartupError: it cannot be made or written, or less than min_free_mb is free.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def max_open_files() -> int:
    """How many files a process may have open here; a limit that is lower for now can be raised to it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def check_open_files(limit: int) -> None:
    """Check that the limit of open files is enough for each process of the server.

    Raises:
        StartupError: it is too low.
    """
    if limit < MIN_OPEN_FILES:
        raise StartupError(
            f"a process may have {limit} files open here, {MIN_OPEN_FILES} are needed; raise the hard limit "
            "(`ulimit -Hn`, LimitNOFILE of systemd, --ulimit nofile of a container)"
        )


def check_gpus(settings: AppSettings, found_gpus: float) -> None:
    """Check that the first replicas need not wait for ever for a GPU.

    Args:
        settings: the profile.
        found_gpus: GPUs of this machine.

    Raises:
        StartupError: they need more GPUs than there are.
    """
    stages = {"encoder": settings.encoder, "sampler": settings.sampler, "decoder": settings.decoder}
    gpus_by_stage = {name: stage.num_gpus * stage.min_replicas for name, stage in stages.items()}
    needed_gpus = sum(gpus_by_stage.values())
    if needed_gpus > found_gpus:
        per_stage = ", ".join(f"{name} {gpus:g}" for name, gpus in gpus_by_stage.items())
        raise StartupError(
            f"the profile needs {needed_gpus:g} GPUs ({per_stage}) and this machine has {found_gpus:g}; "
            "let the stages share one by a num_gpus below 1 each, or use configs/shapes.yaml, which needs none"
        )


def lock_file(data_dir: Path) -> Path:
    """What a server holds for as long as it works on the data folder; one that was killed leaves it."""
    return data_dir / "lock"


def running_server(data_dir: Path) -> psutil.Process | None:
    """The server that works on the data folder, by the process that its lock names; the lock itself is not touched.

    The file of a server that was killed stays, and its number may be another process's by now: that one was started
    after the file was written.
    """
    path = lock_file(data_dir)
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(_owner(path)))
        if process.create_time() <= path.stat().st_mtime and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


@contextlib.contextmanager
def data_folder_lock(data_dir: Path) -> Iterator[Path]:
    """Hold the data folder for this process; the kernel releases it however the process ends. Yields the lock file.

    Raises:
        StartupError: another server holds it; names its process.
    """
    path = lock_file(data_dir)
    lock = FileLock(path, timeout=LOCK_TIMEOUT_S, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise StartupError(
            f"another server (process {_owner(path)}) works on the data folder {data_dir}; "
            "stop it or name another folder with --data"
        ) from None
    try:
        path.write_text(str(os.getpid()))
        yield path
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _owner(lock: Path) -> str:
    try:
        return lock.read_text(errors="replace")[:32].strip() or "unknown"
    except OSError:
        return "unknown"
