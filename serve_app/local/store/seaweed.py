"""The local object store: SeaweedFS (`weed mini`) on 127.0.0.1, kept running.

A server runs `LocalStorage` as a named actor, which Ray starts again when it was killed; tests run it as it is.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deployments.background import wait_for
from deployments.errors import WorkerError
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.errors import StartupError
from serve_app.local.preflight import LOOPBACK, holder, is_free
from serve_app.local.private_files import make_private_folder
from serve_app.local.processes.process_guard import guarded
from serve_app.local.store.seaweed_command import (
    command,
    environment,
    free_admin_port,
    own_store,
    ports,
    remove_dead_sockets,
    remove_sockets,
    sockets_folder,
)
from serve_app.local.store.store_life import StoreLifeTiming, until_it_hangs

log = logging.getLogger(__name__)

ACTOR_NAME = "LocalStorage"
STOP_GRACE_S = 8.0
END_SPARE_S = 2.0
START_TIMEOUT_S = 30.0
BUSY_TIMEOUT_S = 300.0
POLL_S = 0.03
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 10.0
STEADY_S = 60.0
MIN_FREE_BYTES = 64_000_000
MAX_LOG_BYTES = 5_000_000
PROBE_KEY = "ready"


@dataclass(frozen=True, slots=True)
class StoreStatus:
    ready: bool  # it takes objects
    pid: int | None  # of the guardian that it runs under; None while it does not run
    restarts: int  # how often it was started again
    problem: str | None  # why it is not ready, if known


class LocalStorage:
    """Starts the store, and starts it again whenever it ends, until `stop`. Needs a running event loop.

    Ports: `local_port` (S3) and the seven after it. Objects, keys and log lie in `data_dir`. The store ends with
    this process, however it dies.

    Args:
        settings: with `local_port`.
        data_dir: the data folder.
        watch: called once; has this process replaced when it hangs.
        life: when the store counts as hung.
        begin_log: called first; has this process write its log as the settings say.
    """

    def __init__(
        self,
        settings: StorageSettings,
        data_dir: Path,
        watch: Callable[[], object] = lambda: None,
        life: StoreLifeTiming = StoreLifeTiming(),
        begin_log: Callable[[], object] = lambda: None,
    ) -> None:
        begin_log()
        self._life = life
        self._watched = watch()
        self._settings = settings
        self._data_dir = data_dir.resolve()
        self._ready = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._restarts = 0
        self._problem: str | None = None
        # Started here and not at the first `ready`: after a restart of the actor nobody asks again.
        self._watch = asyncio.get_running_loop().create_task(self._keep_running())

    async def ready(self, timeout_s: float = START_TIMEOUT_S, busy_s: float = BUSY_TIMEOUT_S) -> StorageSettings:
        """The settings to reach the store with, once it takes objects.

        Args:
            timeout_s: how long to wait while it does not run, or cannot.
            busy_s: how long to wait while it runs and is not ready: a busy machine takes its time.

        Raises:
            StartupError: it was not ready by then; names the port, the disk or what the store said last. It is tried
                further, so asking again may succeed.
        """
        reachable = self._prepare()
        began = time.monotonic()
        while not self._ready.is_set():
            waited_s = time.monotonic() - began
            if waited_s >= (timeout_s if self._process is None else busy_s):
                problem = self._problem or f"it gave no answer; see {self._log_path}"
                raise StartupError(f"the local object store did not start within {waited_s:.0f} s: {problem}")
            await wait_for(self._ready, POLL_S)
        return reachable

    def status(self) -> StoreStatus:
        return StoreStatus(
            ready=self._ready.is_set(),
            pid=self._process.pid if self._process else None,
            restarts=self._restarts,
            problem=self._problem,
        )

    async def stop(self) -> None:
        """End the store in good order and wait until it has ended."""
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)

    def _prepare(self) -> StorageSettings:
        """Make folders and keys unless they are there. Raises StartupError when that cannot be done."""
        try:
            self._objects.mkdir(mode=0o700, parents=True, exist_ok=True)  # may be a link to another disk
            make_private_folder(self._sockets)
            return own_store(self._settings, self._data_dir)
        except OSError as error:
            raise StartupError(
                f"cannot write in the data folder {self._data_dir} ({error.strerror}); "
                "free the disk, or name another folder with data_dir"
            ) from error

    async def _keep_running(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            try:
                self._problem = await self._run_once()
            except Exception as error:  # nobody else would read it
                log.exception("the local object store could not be run")
                self._problem = f"{type(error).__name__}: {error}"
            finally:
                self._ready.clear()
            if time.monotonic() - started > STEADY_S:
                pause = FIRST_PAUSE_S
            log.error("the local object store ended: %s; starting it again in %.1f s", self._problem, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)
            self._restarts += 1

    async def _run_once(self) -> str:
        """Run the store to its end; returns why it ended, or why it was not started."""
        try:
            reachable = self._prepare()
            self._check_start()
            remove_dead_sockets()
            admin_port = free_admin_port()
            self._process = await self._start(reachable, admin_port)
        except (StartupError, OSError) as error:
            return str(error)
        ended = asyncio.create_task(self._process.wait())
        life = asyncio.create_task(self._live(reachable, self._process.pid))
        try:
            await asyncio.wait((ended, life), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return f"it ended with code {ended.result()}: {self._last_log_line()}"
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # the guardian: it would give grace to what hangs
            return life.result()
        finally:
            ended.cancel()
            life.cancel()
            await asyncio.gather(ended, life, return_exceptions=True)
            await self._end()
            remove_sockets(self._settings.local_port, admin_port)
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _check_start(self) -> None:
        """Raises StartupError when the disk is full or a port is taken."""
        if shutil.disk_usage(self._data_dir).free < MIN_FREE_BYTES:
            raise StartupError(f"the disk that holds {self._data_dir} is full; free some space or set data_dir")
        for name, port in ports(self._settings.local_port).items():
            if not is_free(port):
                raise StartupError(
                    f"port {port} ({name}) is taken by {holder(port)}; "
                    "end that process or set storage.local_port to the first of eight free ports"
                )

    async def _start(self, reachable: StorageSettings, admin_port: int) -> asyncio.subprocess.Process:
        # Written by the last run: it would bring back flags that have changed since.
        (self._objects / "mini.options").unlink(missing_ok=True)
        run = command(self._objects, self._sockets, self._settings.local_port, admin_port)
        with self._open_log() as output, self._objects_lock() as lock:
            return await asyncio.create_subprocess_exec(
                *guarded(run, STOP_GRACE_S),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self._objects,
                env=environment(reachable, self._objects),
                pass_fds=(lock,),
            )

    @contextlib.contextmanager
    def _objects_lock(self) -> Iterator[int]:
        """A lock that the store inherits and holds to its very end.

        A store whose owner was killed ends by itself, a little later, and may have freed its ports before: two must
        never write in one folder, and their unix sockets have the same names.

        Raises:
            StartupError: it has not ended yet.
        """
        lock = os.open(self._data_dir / "objects.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield lock
        except BlockingIOError:
            raise StartupError("the store that ran here before has not ended yet") from None
        finally:
            os.close(lock)

    async def _live(self, reachable: StorageSettings, guardian: int) -> str:
        """Tell when the store is ready; returns why it must be ended, once it hangs."""
        await self._set_ready(reachable)
        await until_it_hangs(self._settings.local_port, guardian, self._life)
        return "it gave no answer any more"

    async def _set_ready(self, reachable: StorageSettings) -> None:
        """Set `ready` once the store takes an object: the bucket is there and the disk can be written."""
        await _listening(self._settings.local_port)
        store = ObjectStore(reachable)
        while True:
            try:
                await store.ensure_bucket()
                await store.put(PROBE_KEY, b"ready", "text/plain")
                break
            except WorkerError as error:
                self._problem = str(error)
            await asyncio.sleep(POLL_S)
        store.close()
        self._problem = None
        self._ready.set()

    async def _end(self) -> None:
        """Close the guardian's pipe and wait for it: it ends the store."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None or process.stdin is None:
            return
        process.stdin.close()
        try:
            await asyncio.wait_for(asyncio.shield(process.wait()), STOP_GRACE_S + END_SPARE_S)
        except TimeoutError:  # the guardian itself hangs
            process.kill()
            await asyncio.shield(process.wait())

    @property
    def _objects(self) -> Path:
        return self._data_dir / "objects"

    @property
    def _sockets(self) -> Path:
        return sockets_folder(self._data_dir)

    @property
    def _log_path(self) -> Path:
        return self._data_dir / "objects.log"

    def _open_log(self) -> BinaryIO:
        if self._log_path.exists() and self._log_path.stat().st_size > MAX_LOG_BYTES:
            self._log_path.replace(self._log_path.with_suffix(".log.1"))
        return os.fdopen(os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")

    def _last_log_line(self) -> str:
        with self._log_path.open("rb") as file:
            file.seek(max(0, self._log_path.stat().st_size - 2000))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1].strip()[:300] if lines else 'it said nothing'} (see {self._log_path})"


async def _listening(port: int) -> None:
    """Return once something takes connections on the port."""
    while True:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            await asyncio.sleep(POLL_S)
            continue
        writer.close()
        return
