"""A model from an object store to disk: reads at the store, rate, what a kill costs, and that damage is found.

    python benchmarks/model_fetch.py
    python benchmarks/model_fetch.py --megabytes 64 --rounds 1 --kills 3 --nodes 3 --out results.json

A SeaweedFS of its own, the included model with a large tensor beside its own, and processes for nodes, each with a
folder of its own. The rate is held against the slower of the store (ranges to nowhere) and the disk (one file, synced),
measured in turns with it.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from deployments.errors import WorkerError
from deployments.settings import StorageSettings
from deployments.storage.fetching.chunk_list import CHUNK_LIST, ChunkHasher, ChunkList
from deployments.storage.fetching.errands import BucketAlone, Exchange
from deployments.storage.models.bucket import FetchOptions
from deployments.storage.models.store import model_folder
from deployments.storage.object_store import ObjectRange, ObjectStore
from deployments.weights_exchange.directory import Answer, Ask, Directory, DirectoryAwayError, Join, WeightsDirectory
from deployments.weights_exchange.node import NodeExchange
from serve_app.local.store.seaweed import LocalStorage
from tests.support.servers.ports import free_block

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("transformer",)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
STREAMS = 8
RATE_BAR = 0.8
KILL_MEGABYTES = 48
KILL_CHUNK = 1024 * 1024
AUTH = b"model_fetch"
HASHED_BYTES = 64 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=512, help="of the model whose rate is measured")
    parser.add_argument("--chunk-megabytes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where everything is made, of the disk to measure")
    parser.add_argument("--remark", default="", help="goes into the result: what else the machine did")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_node(json.loads(arguments.child))
        return
    with tempfile.TemporaryDirectory(prefix="mochi-fetch-", dir=arguments.folder) as made:
        result = asyncio.run(measure(Path(made), arguments))
    Console(width=None if sys.stdout.isatty() else 140).print(table(result))
    machine = describe_machine(torch.device("cpu"))
    publish({"benchmark": "model_fetch", "machine": machine, "remark": arguments.remark, **result}, arguments.out)


async def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    storage = LocalStorage(StorageSettings(local_port=free_block()), folder / "store")
    try:
        settings = await storage.ready()
        chunk_bytes = arguments.chunk_megabytes * 1024 * 1024
        large = make_model(folder / "large", arguments.megabytes, chunk_bytes)
        small = make_model(folder / "small", KILL_MEGABYTES, KILL_CHUNK)
        for model in (large, small):
            await upload(settings, model.folder, model.folder.name)
        bench = Bench(folder, settings)
        one = await asyncio.to_thread(bench.one_node, large, arguments.rounds)
        many = await asyncio.to_thread(bench.nodes, large, arguments.nodes)
        kills = await asyncio.to_thread(bench.kills, small, arguments.kills)
        damage = await bench.damage(small)
    finally:
        await storage.stop()
    return {"one_node": one, "nodes": many, "kills": kills, "damage": damage}


@dataclass(frozen=True, slots=True)
class Model:
    """A model to fetch."""

    folder: Path
    chunk_bytes: int
    sha256: str  # of its weights

    @property
    def nbytes(self) -> int:
        return (self.folder / WEIGHTS).stat().st_size


def make_model(folder: Path, megabytes: int, chunk_bytes: int) -> Model:
    """The included model with a tensor of random bytes beside its own, and the lists that `model prepare` writes."""
    shutil.copytree(ROOT / "models/shapes", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", "SHA256SUMS"))
    path = folder / WEIGHTS
    tensors = load_file(path)
    noise = torch.frombuffer(bytearray(os.urandom(megabytes * 1_000_000)), dtype=torch.bfloat16)
    save_file({**tensors, "noise": noise}, path)
    data = path.read_bytes()
    hasher = ChunkHasher(chunk_bytes)
    hasher.update(data)
    sha256 = hashlib.sha256(data).hexdigest()
    (folder / CHUNK_LIST).write_bytes(ChunkList(chunk_bytes, {WEIGHTS: hasher.hashes()}).encode())
    (folder / "SHA256SUMS").write_text(f"{sha256}  {WEIGHTS}\n")
    return Model(folder, chunk_bytes, sha256)


async def upload(settings: StorageSettings, folder: Path, prefix: str) -> None:
    store = ObjectStore(settings)
    for path in folder.rglob("*"):
        if path.is_file():
            await store.put_file(f"{prefix}/{path.relative_to(folder)}", path, "application/octet-stream")
    store.close()


class CountingStore(ObjectStore):
    """Counts what comes from the store; kills its process after so many bytes."""

    def __init__(self, settings: StorageSettings, kill_after: int | None = None) -> None:
        super().__init__(settings)
        self.bytes = 0
        self.reads = 0
        self._kill_after = kill_after
        self._counting = threading.Lock()

    @contextmanager
    def open_range(self, key: str, offset: int, length: int) -> Iterator[ObjectRange]:
        with super().open_range(key, offset, length) as found:
            self.reads += 1
            yield ObjectRange(found.etag, self._counted(found.chunks))

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            with self._counting:
                self.bytes += len(chunk)
            if self._kill_after is not None and self.bytes >= self._kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield chunk


class _Manager(BaseManager):
    """Carries calls to the directory between the processes here, as Ray does in a cluster."""


class _Calls:
    """The directory's methods, one call at a time."""

    def __init__(self) -> None:
        self._directory = WeightsDirectory()
        self._lock = threading.Lock()

    def join(self, join: Join) -> Answer:
        with self._lock:
            return asyncio.run(self._directory.join(join))

    def ask(self, ask: Ask) -> Answer:
        with self._lock:
            return asyncio.run(self._directory.ask(ask))


_Manager.register("shared")


@contextmanager
def directory_port() -> Iterator[int]:
    """The port of a directory, which is served by a thread until this process ends."""
    calls = _Calls()

    class Serving(BaseManager):
        pass

    Serving.register("shared", callable=lambda: calls)
    server = Serving(("127.0.0.1", 0), authkey=AUTH).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert isinstance(server.address, tuple)
    yield server.address[1]


class RemoteDirectory(Directory):
    """The directory in the process that measures."""

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def join(self, join: Join) -> Answer:
        return self._call(self._calls.join, join)

    def ask(self, ask: Ask) -> Answer:
        return self._call(self._calls.ask, ask)

    def _call(self, method: Callable[[Any], Any], argument: Join | Ask) -> Answer:
        try:
            answer: Answer = method(argument)
            return answer
        except (OSError, EOFError) as error:
            raise DirectoryAwayError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Choice:
    """As `model_folder` wants it."""

    source: str
    revision: str | None = None
    dtype: str = "float32"
    hash_at_start: bool = False


def fetch(store: ObjectStore, prefix: str, cache: Path, exchange: Exchange | None = None) -> Path:
    choice: Any = Choice(f"s3://{store.bucket}/{prefix}")
    options = FetchOptions(pauses_s=(0.1, 0.2), exchange=exchange or BucketAlone())
    return model_folder(choice, PARTS, lambda name: store, cache, options=options)


def run_node(task: dict[str, Any]) -> None:
    """In a process of its own: fetch a model, and serve it until all have it."""
    store = CountingStore(StorageSettings(**task["storage"]), task.get("kill_after"))
    node = None
    if "port" in task:
        manager = _Manager(("127.0.0.1", task["port"]), authkey=AUTH)
        manager.connect()
        node = NodeExchange(RemoteDirectory(manager.shared()), "127.0.0.1")  # type: ignore[attr-defined]
        print("ready", flush=True)
        sys.stdin.readline()
    begun, cpu_begun = time.perf_counter(), time.process_time()
    folder = fetch(store, task["prefix"], Path(task["cache"]), node)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun
    done = {"seconds": seconds, "cpu_s": cpu_s, "bytes": store.bytes, "reads": store.reads, "folder": str(folder)}
    print(json.dumps(done), flush=True)
    if node is not None:
        sys.stdin.readline()
        node.close()


class Bench:
    """What is measured of models in a store.

    Args:
        folder: for caches.
        settings: of the store, in which the models lie under the names of their folders.
    """

    def __init__(self, folder: Path, settings: StorageSettings) -> None:
        self._folder = folder
        self._settings = settings
        keys = {name: getattr(settings, name).get_secret_value() for name in ("access_key", "secret_key")}
        self._storage = settings.model_dump(mode="json") | keys
        self._random = random.Random(0)

    def one_node(self, model: Model, rounds: int) -> dict[str, Any]:
        """Rates of the store, the disk and a fetch, in turns, and what processors do in a fetch."""
        rates: dict[str, list[float]] = {"store": [], "disk": [], "fetch": []}
        busy: dict[str, list[float]] = {"fetch": [], "store": []}
        read = 0
        for number in range(rounds):
            rates["store"].append(model.nbytes / self._read_store(model) / 1e9)
            rates["disk"].append(model.nbytes / self._write_disk(model) / 1e9)
            cache = self._folder / f"one-{number}"
            store_cpu_s = self._store_cpu_s()
            done = self._run(self._task(model, cache))
            busy["store"].append((self._store_cpu_s() - store_cpu_s) / done["seconds"])
            busy["fetch"].append(done["cpu_s"] / done["seconds"])
            self._check(model, Path(done["folder"]))
            rates["fetch"].append(model.nbytes / done["seconds"] / 1e9)
            read = done["bytes"]
            shutil.rmtree(cache)
        medians = {name: statistics.median(found) for name, found in rates.items()}
        ratio = medians["fetch"] / min(medians["store"], medians["disk"])
        return {
            "model_bytes": model.nbytes,
            "bucket_bytes": read,
            "bucket_models": read / model.nbytes,
            "gb_per_s": medians,
            "rounds": rates,
            "cores_busy": {name: statistics.median(found) for name, found in busy.items()},
            "sha256_gb_per_s": sha256_rate(),
            "ratio": ratio,
            "ratio_bar": RATE_BAR,
            "ratio_holds": ratio >= RATE_BAR,
        }

    def nodes(self, model: Model, count: int) -> dict[str, Any]:
        """As many nodes at once, which serve each other."""
        with directory_port() as port:
            tasks = [{**self._task(model, self._folder / f"node-{number}"), "port": port} for number in range(count)]
            processes = [self._start(task) for task in tasks]
            for process in processes:
                assert self._line(process) == "ready"
            begun = time.perf_counter()
            for process in processes:
                self._go(process)
            done = [json.loads(self._line(process)) for process in processes]
            seconds = time.perf_counter() - begun
            for process in processes:
                self._go(process)
                process.communicate()
        for found in done:
            self._check(model, Path(found["folder"]))
        for task in tasks:
            shutil.rmtree(task["cache"])
        read = sum(found["bytes"] for found in done)
        return {
            "nodes": count,
            "bucket_bytes": read,
            "bucket_models": read / model.nbytes,
            "seconds": seconds,
            "gb_per_s": count * model.nbytes / seconds / 1e9,
            "disk_gb_per_s": model.nbytes / self._write_disk(model) / 1e9,
        }

    def kills(self, model: Model, count: int) -> dict[str, Any]:
        """A fetch that is killed after random bytes, and the next one: what comes again, and what is left behind."""
        again, damaged, litter = [], 0, 0
        for number in range(count):
            cache, after = self._folder / f"kill-{number}", self._random.randrange(1, model.nbytes)
            process = self._start({**self._task(model, cache), "kill_after": after})
            process.communicate()
            assert process.returncode == -signal.SIGKILL, process.returncode
            store = CountingStore(self._settings)
            folder = fetch(store, model.folder.name, cache)
            damaged += file_hash(folder / WEIGHTS) != model.sha256
            litter += len(list(cache.rglob(".partial-*")))
            again.append((after + store.bytes - model.nbytes) / model.chunk_bytes)
            store.close()
            shutil.rmtree(cache)
        most = max(again, default=0.0)
        return {
            "kills": count,
            "damaged_models": damaged,
            "files_left_behind": litter,
            "chunks_again_most": most,
            "chunks_again_bar": STREAMS + 1,  # one of each stream, and small files and headers
            "holds": not damaged and not litter and most <= STREAMS + 1,
        }

    async def damage(self, model: Model) -> dict[str, str]:
        """What is said of a model that is damaged in the bucket, and of one that is damaged in the cache."""
        data = (model.folder / WEIGHTS).read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        found = {}
        for name, damaged in {"truncated": data[: len(data) // 2], "flipped": bytes(flipped), "empty": b""}.items():
            await upload(self._settings, model.folder, name)
            await self._put(f"{name}/{WEIGHTS}", damaged)
            found[f"bucket, {name}"] = await asyncio.to_thread(self._try, name, model)
        await upload(self._settings, model.folder, "missing")
        store = ObjectStore(self._settings)
        await store.delete(f"missing/{WEIGHTS}")
        store.close()
        found["bucket, missing"] = await asyncio.to_thread(self._try, "missing", model)
        for name, damaged in {"truncated": data[: len(data) // 2], "flipped": bytes(flipped), "empty": b""}.items():
            found[f"cache, {name}"] = await asyncio.to_thread(self._try_cache, model, damaged)
        found["cache, missing"] = await asyncio.to_thread(self._try_cache, model, None)
        return found

    async def _put(self, key: str, data: bytes) -> None:
        store = ObjectStore(self._settings)
        await store.put(key, data, "application/octet-stream")
        store.close()

    def _try(self, prefix: str, model: Model) -> str:
        cache, store = self._folder / f"try-{prefix}", CountingStore(self._settings)
        try:
            fetch(store, prefix, cache)
        except WorkerError as error:
            return error.code
        finally:
            store.close()
            shutil.rmtree(cache, ignore_errors=True)
        return "TAKEN"

    def _try_cache(self, model: Model, damaged: bytes | None) -> str:
        cache, store = self._folder / "try-cache", CountingStore(self._settings)
        try:
            path = fetch(store, model.folder.name, cache) / WEIGHTS
            path.unlink() if damaged is None else path.write_bytes(damaged)
            fetch(store, model.folder.name, cache)
            return "fetched again" if file_hash(path) == model.sha256 else "TAKEN"
        finally:
            store.close()
            shutil.rmtree(cache, ignore_errors=True)

    def _check(self, model: Model, folder: Path) -> None:
        if file_hash(folder / WEIGHTS) != model.sha256:
            raise AssertionError(f"{folder} is damaged")

    def _task(self, model: Model, cache: Path) -> dict[str, Any]:
        return {"storage": self._storage, "prefix": model.folder.name, "cache": str(cache)}

    def _run(self, task: dict[str, Any]) -> dict[str, Any]:
        output, _ = self._start(task).communicate()
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found

    def _start(self, task: dict[str, Any]) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, "--child", json.dumps(task)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _line(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def _go(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    def _store_cpu_s(self) -> float:
        """Processor seconds of the store so far; nothing else of ours runs when it is called."""
        processes = psutil.Process().children(recursive=True)
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def _read_store(self, model: Model) -> float:
        """Seconds for all ranges of the weights, to nowhere."""
        store = ObjectStore(self._settings)

        def read(offset: int) -> None:
            length = min(model.chunk_bytes, model.nbytes - offset)
            with store.open_range(f"{model.folder.name}/{WEIGHTS}", offset, length) as found:
                for _ in found.chunks:
                    pass

        begun = time.perf_counter()
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(read, range(0, model.nbytes, model.chunk_bytes)))
        store.close()
        return time.perf_counter() - begun

    def _write_disk(self, model: Model) -> float:
        """Seconds for a file of the size of the weights, on the disk."""
        data, path = (model.folder / WEIGHTS).read_bytes(), self._folder / "written"
        begun = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view[: 1024 * 1024]) :]
            os.fsync(file.fileno())
        seconds = time.perf_counter() - begun
        path.unlink()
        return seconds


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_rate() -> float:
    """GB/s of one core."""
    data = os.urandom(HASHED_BYTES)
    begun = time.process_time()
    hashlib.sha256(data).digest()
    return len(data) / (time.process_time() - begun) / 1e9


def table(result: dict[str, Any]) -> Table:
    shown = Table("what", "found")
    one, many, kills = result["one_node"], result["nodes"], result["kills"]
    rates = one["gb_per_s"]
    shown.add_row("store, disk, fetch GB/s", ", ".join(f"{rates[name]:.2f}" for name in ("store", "disk", "fetch")))
    shown.add_row("fetch against the slower of both", f"{one['ratio']:.2f} (bar {one['ratio_bar']})")
    busy = one["cores_busy"]
    shown.add_row(
        f"cores busy in a fetch, of {os.cpu_count()}",
        f"{busy['fetch']:.2f} of the fetch, {busy['store']:.2f} of the store",
    )
    shown.add_row("SHA-256 on one core, GB/s", f"{one['sha256_gb_per_s']:.2f}")
    shown.add_row("read from the bucket by one node", f"{one['bucket_models']:.3f} models")
    shown.add_row(
        f"by {many['nodes']} nodes together", f"{many['bucket_models']:.3f} models in {many['seconds']:.1f} s"
    )
    shown.add_row("to their disks together", f"{many['gb_per_s']:.2f} GB/s (one disk: {many['disk_gb_per_s']:.2f})")
    shown.add_row(
        f"{kills['kills']} kills: damaged, left behind, chunks again at most",
        f"{kills['damaged_models']}, {kills['files_left_behind']}, {kills['chunks_again_most']:.1f}",
    )
    for name, found in result["damage"].items():
        shown.add_row(name, found)
    return shown


if __name__ == "__main__":
    main()
