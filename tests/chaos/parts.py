"""Parts that a run breaks from outside: an object store, a small disk, a wall clock."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from pydantic import SecretStr

from deployments.settings import StorageSettings
from serve_app.local.preflight import LOOPBACK, is_free
from serve_app.local.processes.process_guard import guarded
from serve_app.local.store import seaweed_command
from tests.support.servers.bucket import bucket_ready
from tests.support.servers.server import title_of

READY_S = 60.0
POLL_S = 0.1
GRACE_S = 8.0
CLOCK = Path(__file__).resolve().parent / "clock"
_S3_PORT = re.compile(r"-s3\.port=(\d+)")
_ADMIN_PORT = re.compile(r"-admin\.port=(\d+)")
_SCRATCH = re.compile(r"/\S*?/mochi-(?:s|video)-[a-z0-9_]{8}(?=/)")


class OutsideStore:
    """A SeaweedFS that the server under test does not watch over: killed, it stays away until `start`."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self.port = port
        self._guardian: subprocess.Popen[bytes] | None = None
        self._admin_port = seaweed_command.free_admin_port()
        (folder / "objects").mkdir(parents=True)
        (folder / "sockets").mkdir(mode=0o700)
        access_key, secret_key = seaweed_command.load_or_make_keys(folder / "keys.json")
        self.settings = StorageSettings(
            endpoint=f"{LOOPBACK}:{port}",
            access_key=SecretStr(access_key),
            secret_key=SecretStr(secret_key),
            secure=False,
        )
        self.environ = {
            "MOCHI_SERVE__STORAGE__ENDPOINT": f"{LOOPBACK}:{port}",
            "MOCHI_SERVE__STORAGE__ACCESS_KEY": access_key,
            "MOCHI_SERVE__STORAGE__SECRET_KEY": secret_key,
            "MOCHI_SERVE__STORAGE__SECURE": "false",
        }

    def start(self) -> None:
        """Start it; it is ready some seconds later."""
        objects = self._folder / "objects"
        (objects / "mini.options").unlink(missing_ok=True)
        command = seaweed_command.command(objects, self._folder / "sockets", self.port, self._admin_port)
        with (self._folder / "objects.log").open("ab") as log:
            self._guardian = subprocess.Popen(
                guarded(command, GRACE_S),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=objects,
                env=seaweed_command.environment(self.settings, objects),
            )

    async def ready(self) -> None:
        """Return when the bucket is there and can be written."""
        await bucket_ready(self.settings, READY_S)

    def kill(self) -> None:
        """kill -9 to the store and its guardian."""
        if self._guardian is None:
            return
        doomed = psutil.Process(self._guardian.pid).children(recursive=True)
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._guardian.kill()
        self._guardian.communicate()
        psutil.wait_procs(doomed, GRACE_S)
        seaweed_command.remove_sockets(self.port, self._admin_port)
        self._guardian = None


class SmallDisk:
    """A file system of its own size, in memory, that can be filled to the last byte."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(parents=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)],
            check=True,
            capture_output=True,
        )

    def fill(self) -> None:
        """Write until nothing more fits."""
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        # Lazily: a process that was killed a moment ago may hold a file for a moment more.
        subprocess.run(["umount", "-l", str(self._folder)], check=True, capture_output=True)


class WallClock:
    """The wall clock of the Python processes that are started with `environ`: real, until it is set ahead."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.set_ahead(0)
        paths = [str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environ = {"CHAOS_CLOCK_FILE": str(self._file), "PYTHONPATH": os.pathsep.join(paths)}

    def set_ahead(self, seconds: int) -> None:
        """Move the clock to `seconds` after the real time; all the processes see it within a fifth of a second."""
        draft = self._file.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(self._file)


def why_no_mounts() -> str | None:
    """Why this process cannot mount a file system; None if it may try."""
    if os.geteuid() != 0:
        return "only root may mount a file system"
    return None if shutil.which("mount") else "there is no program named mount"


class Leftovers:
    """What a server that is killed as a whole cannot remove; found from the command lines of its processes."""

    def __init__(self, processes: Iterable[psutil.Process]) -> None:
        said = [title_of(process) for process in processes]
        stores = [(_S3_PORT.search(one), _ADMIN_PORT.search(one)) for one in said]
        self._stores = {(int(s3[1]), int(admin[1])) for s3, admin in stores if s3 and admin}
        self._scratch = {match[0] for one in said for match in _SCRATCH.finditer(one)}

    def remove(self) -> None:
        for s3_port, admin_port in self._stores:
            if is_free(s3_port):  # else the next store is there, with sockets of the same names
                seaweed_command.remove_sockets(s3_port, admin_port)
        for folder in self._scratch:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    disk = SmallDisk(folder, megabytes)
    try:
        yield disk
    finally:
        disk.unmount()
