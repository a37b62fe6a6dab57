"""The local store: on loopback alone, back after a kill with what it held, and clear about what stops it."""

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from deployments.errors import StorageUnavailableError
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.errors import StartupError
from serve_app.local.preflight import is_free
from serve_app.local.store.seaweed import LocalStorage
from serve_app.local.store.seaweed_command import ports
from serve_app.local.store.store_life import StoreLifeTiming
from tests.support.waiting import gone

needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")


@asynccontextmanager
async def _running(port: int, folder: Path, life: StoreLifeTiming = StoreLifeTiming()) -> AsyncIterator[LocalStorage]:
    storage = LocalStorage(StorageSettings(local_port=port), folder, life=life)
    try:
        yield storage
    finally:
        await storage.stop()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):
        while not condition():
            await asyncio.sleep(0.02)


def _children(storage: LocalStorage) -> list[psutil.Process]:
    guardian = storage.status().pid
    assert guardian is not None
    return psutil.Process(guardian).children()


def _store_pid(storage: LocalStorage) -> int:
    return _children(storage)[0].pid


def _listening(pid: int) -> set[str]:
    """Local addresses on which a process listens."""
    sockets = psutil.Process(pid).net_connections("tcp")
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}


@needs_proc
async def test_only_loopback_listens_and_an_empty_store_is_small(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as storage:
        await storage.ready()
        assert _listening(_store_pid(storage)) == {"127.0.0.1"}
        assert all(p.stat().st_mode & 0o077 == 0 for p in tmp_path.iterdir())
        assert sum(p.stat().st_blocks * 512 for p in tmp_path.rglob("*") if p.is_file()) < 5_000_000


async def test_objects_outlive_a_stop(local_port: int, tmp_path: Path) -> None:
    (tmp_path / "another disk").mkdir()
    (tmp_path / "objects").symlink_to(tmp_path / "another disk")
    async with _running(local_port, tmp_path) as storage:
        await ObjectStore(await storage.ready()).put("kept", b"still here", "text/plain")
    assert all(is_free(port) for port in ports(local_port).values())
    assert list(Path("/tmp").glob(f"seaweedfs-*-{local_port + 1}.sock")) == []
    assert not (tmp_path / "sockets").exists()
    async with _running(local_port, tmp_path) as storage:
        assert await ObjectStore(await storage.ready()).get("kept") == b"still here"


@needs_proc
async def test_a_killed_store_comes_back_with_its_objects(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as storage:
        store = ObjectStore(await storage.ready())
        await store.put("kept", bytes(5_000_000), "video/mp4")
        os.kill(_store_pid(storage), signal.SIGKILL)
        await _until(lambda: storage.status().restarts == 1)
        await storage.ready()
        assert await store.get("kept") == bytes(5_000_000)
        await store.put("new", b"taken", "text/plain")


@needs_proc
async def test_a_request_waits_out_a_restart(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as storage:
        store = ObjectStore(await storage.ready())
        await store.put("kept", b"x", "text/plain")
        killed = _store_pid(storage)
        os.kill(killed, signal.SIGKILL)
        assert gone([killed])
        async with asyncio.timeout(300):
            while True:  # on a busy machine the restart takes longer than one request waits
                with suppress(StorageUnavailableError):
                    assert await store.get("kept") == b"x"
                    break


@needs_proc
async def test_a_store_that_stands_still_is_replaced_and_keeps_its_objects(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path, StoreLifeTiming(look_s=0.5, idle_s=2)) as storage:
        store = ObjectStore(await storage.ready())
        await store.put("kept", b"still here", "text/plain")
        stopped = _store_pid(storage)
        os.kill(stopped, signal.SIGSTOP)
        await _until(lambda: storage.status().restarts == 1)
        await storage.ready()
        assert await store.get("kept") == b"still here"
        assert gone([stopped])


async def test_a_fault_at_the_start_is_told(local_port: int, tmp_path: Path) -> None:
    settings = StorageSettings(local_port=local_port).model_copy(update={"bucket": "not a bucket"})
    storage = LocalStorage(settings, tmp_path)
    with pytest.raises(StartupError, match="did not start within"):
        await storage.ready(timeout_s=0.1)
    await _until(lambda: storage.status().problem is not None)
    with pytest.raises(StartupError, match="not a bucket"):
        await storage.ready(timeout_s=0)
    await storage.stop()


@pytest.mark.slow
@needs_proc
async def test_a_guardian_that_stands_still_does_not_hold_up_the_stop(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as storage:
        await storage.ready()
        store, guardian = _store_pid(storage), storage.status().pid
        assert guardian is not None
        os.kill(guardian, signal.SIGSTOP)
    assert gone([store, guardian])


@needs_proc
async def test_a_killed_guardian_takes_the_store_with_it_and_both_come_back(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as storage:
        store = ObjectStore(await storage.ready())
        await store.put("kept", b"x", "text/plain")
        guardian, child = storage.status().pid, _store_pid(storage)
        assert guardian is not None
        os.kill(guardian, signal.SIGKILL)
        await _until(lambda: storage.status().restarts >= 1)
        await storage.ready()
        assert gone([child])
        assert await store.get("kept") == b"x"


async def test_a_taken_port_is_named_and_used_once_free(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as storage:
        with socket.create_server(("127.0.0.1", local_port + 2)):
            with pytest.raises(StartupError, match=rf"port {local_port + 2} \(master\) is taken by"):
                await storage.ready(timeout_s=0.5)
            assert "is taken" in (storage.status().problem or "")
        await storage.ready()


@needs_proc
async def test_a_store_that_runs_is_waited_for_however_long_it_takes(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as storage:
        await _until(lambda: storage.status().pid is not None and _children(storage) != [])
        (store,) = _children(storage)
        store.suspend()  # as on a machine that is too busy to run it
        with pytest.raises(StartupError, match="did not start within .* it gave no answer"):
            await storage.ready(timeout_s=0, busy_s=0.2)
        waiting = asyncio.create_task(storage.ready(timeout_s=0))
        await asyncio.sleep(0)
        store.resume()
        assert (await waiting).endpoint == f"127.0.0.1:{local_port}"


async def test_a_folder_that_cannot_be_made_is_named(local_port: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with _running(local_port, tmp_path / "file" / "data") as storage:
        with pytest.raises(StartupError, match="data folder .*file/data"):
            await storage.ready()


async def test_a_stop_while_it_starts(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as storage:
        await _until(lambda: storage.status().pid is not None)
        guardian = storage.status().pid
    assert guardian is not None
    assert gone([guardian])
    assert all(is_free(port) for port in ports(local_port).values())


OWNER = """
import asyncio, sys
from pathlib import Path
from deployments.settings import StorageSettings
from serve_app.local.store.seaweed import LocalStorage

async def main():
    storage = LocalStorage(StorageSettings(local_port=int(sys.argv[1])), Path(sys.argv[2]))
    await storage.ready()
    print(storage.status().pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_store_whose_owner_was_killed_takes_nothing_from_the_next(local_port: int, tmp_path: Path) -> None:
    """Its unix sockets, which have the names of the new one's, go with it after its ports are free."""
    command = (sys.executable, "-c", OWNER, str(local_port), str(tmp_path))
    owner = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    guardian = int(await owner.stdout.readline())
    owner.kill()
    await owner.wait()
    async with _running(local_port, tmp_path) as storage:
        await storage.ready()
        assert await asyncio.to_thread(gone, [guardian])
        assert {"s3", "master", "volume", "filer"} <= set(_unix_sockets(local_port))


def _unix_sockets(local_port: int) -> list[str]:
    """Parts of the store whose socket is there."""
    paths = [path for port in ports(local_port).values() for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock")]
    return [path.name.split("-")[1] for path in paths]


async def test_a_start_waits_for_the_end_of_the_store_before(local_port: int, tmp_path: Path) -> None:
    async with _running(local_port, tmp_path) as first:
        await first.ready()
        with (tmp_path / "objects.lock").open("rb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "objects.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        async with _running(local_port, tmp_path) as second:
            await _until(lambda: second.status().problem is not None)
            assert second.status().problem == "the store that ran here before has not ended yet"
            fcntl.flock(lock, fcntl.LOCK_UN)
            await second.ready()
