"""Models from a real object store, also through one that stops sending."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from deployments.settings import StorageSettings
from deployments.storage.models.bucket import FetchOptions, fetch_model
from deployments.storage.models.file_hashes import HashRecord
from deployments.storage.models.layout import FolderFiles
from deployments.storage.models.positions import KEPT, exact_positions
from deployments.storage.object_store import ObjectRange, ObjectStore
from tests.support import ROOT
from tests.support.waiting import until
from tests.support.workers.published_model import published_model

PREFIX = "fetched/mochi"
PARTS = ("scheduler", "tokenizer", "text_encoder", "transformer", "vae")
OPTIONS = FetchOptions(chunk_bytes=100_000, pauses_s=(0, 0, 0))


class CountingStore(ObjectStore):
    """Counts the bytes that are asked of each object."""

    def __init__(self, settings: StorageSettings, read_timeout_s: float = 30) -> None:
        super().__init__(settings, read_timeout_s)
        self.asked: Counter[str] = Counter()

    @contextmanager
    def open_range(self, key: str, offset: int, length: int) -> Iterator[ObjectRange]:
        with super().open_range(key, offset, length) as found:
            self.asked.update({key.removeprefix(f"{PREFIX}/"): length})
            yield found


class Relay:
    """Passes bytes on to the store. After `limit` bytes of answers the connections that are open then hang for good.

    Args:
        forever: whether later connections hang too, until `release`.
    """

    def __init__(self, target: str, limit: int, forever: bool) -> None:
        self._target = target
        self._limit: int | None = limit
        self._forever = forever
        self._passed = 0
        self._opened = 0
        self._hang_below = 0.0  # connections of a lower number
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoint = ""

    @property
    def hangs(self) -> bool:
        return self._hang_below > 0

    def release(self) -> None:
        """Let later connections pass."""
        self._hang_below = self._opened

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self._opened = self._opened, self._opened + 1
        host, port = self._target.rsplit(":", 1)
        there, back = await asyncio.open_connection(host, int(port))
        pair = [asyncio.create_task(self._copy(reader, back)), asyncio.create_task(self._copy(there, writer, number))]
        self._tasks.update(pair)
        await asyncio.wait(pair, return_when=asyncio.FIRST_COMPLETED)
        for task in pair:
            task.cancel()
        for each in (back, writer):
            each.close()

    async def _copy(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, number: int | None = None
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(16_384):
                if number is not None:
                    await self._count(len(data), number)
                target.write(data)
                await target.drain()

    async def _count(self, size: int, number: int) -> None:
        self._passed += size
        if self._limit is not None and self._passed > self._limit:
            self._hang_below = float("inf") if self._forever else self._opened
            self._limit = None
        while number < self._hang_below:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def relay(settings: StorageSettings, limit: int, forever: bool) -> AsyncIterator[tuple[Relay, StorageSettings]]:
    """A relay before the store, and settings with its address."""
    relay = Relay(str(settings.endpoint), limit, forever)
    async with await asyncio.start_server(relay.serve, "127.0.0.1", 0) as server:
        yield relay, settings.model_copy(update={"endpoint": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        relay.close()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_model(tmp_path_factory.mktemp("published"))


@pytest.fixture
async def source(object_store: ObjectStore, published: Path) -> str:
    for path in published.rglob("*"):
        if path.is_file():
            key = f"{PREFIX}/{path.relative_to(published)}"
            await object_store.put_file(key, path, "application/octet-stream")
    return f"s3://{object_store.bucket}/{PREFIX}"


def fetch(source: str, store: ObjectStore, cache: Path) -> Path:
    return fetch_model(source, store, PREFIX, PARTS, "bfloat16", cache, HashRecord(cache / "hashes"), OPTIONS)


def is_unused(name: str) -> bool:
    """Of the other variant, or the authors' own file."""
    weights = name.endswith(".safetensors") or "index" in name
    return "/" not in name or (weights and name.startswith(("transformer/", "vae/")) and "bf16" not in name)


async def test_of_the_published_layout_one_variant_is_fetched(
    source: str, storage_settings: StorageSettings, published: Path, tmp_path: Path
) -> None:
    store = CountingStore(storage_settings)
    folder = await asyncio.to_thread(fetch, source, store, tmp_path)
    names = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    wanted = {"model_index.json"} | {name for name in names if not is_unused(name)}
    # Of the other variant one tensor is read.
    assert {name for name in store.asked if store.asked[name]} - wanted == {
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
    }
    kept = exact_positions(FolderFiles(folder), "bfloat16")
    assert kept is not None and kept.origin.endswith(KEPT)
    for name in wanted:
        assert (folder / name).read_bytes() == (published / name).read_bytes()
    sizes = {name: (published / name).stat().st_size for name in names}
    fetched = sum(store.asked.values()) - sum(sizes[name] for name in wanted)
    assert 0 < fetched < 100_000  # the headers, which are read before
    assert sum(sizes[name] for name in names - wanted) > 3_000_000


async def test_a_store_that_stops_sending_is_asked_again(
    source: str, storage_settings: StorageSettings, published: Path, tmp_path: Path
) -> None:
    async with relay(storage_settings, limit=500_000, forever=False) as (slow, settings):
        store = ObjectStore(settings, read_timeout_s=1)
        folder = await asyncio.to_thread(fetch, source, store, tmp_path)
        assert slow.hangs
        store.close()
    name = "vae/diffusion_pytorch_model.bf16.safetensors"
    assert (folder / name).read_bytes() == (published / name).read_bytes()


CHILD = """
import json, pathlib, sys
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from tests.integration.storage.test_bucket_models import fetch

fetch(sys.argv[1], ObjectStore(StorageSettings(**json.loads(sys.argv[2]))), pathlib.Path(sys.argv[3]))
"""


async def test_a_killed_fetch_goes_on(
    source: str, storage_settings: StorageSettings, published: Path, tmp_path: Path
) -> None:
    async with relay(storage_settings, limit=1_500_000, forever=True) as (slow, settings):
        keys = {name: getattr(settings, name).get_secret_value() for name in ("access_key", "secret_key")}
        values = json.dumps(settings.model_dump(mode="json") | keys)
        process = subprocess.Popen([sys.executable, "-c", CHILD, source, values, tmp_path], cwd=ROOT)
        try:
            await until(lambda: (slow.hangs and noted(tmp_path)) or process.poll() is not None)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
        done = sum(noted(tmp_path))
        assert done > 0
        slow.release()
        store = CountingStore(settings)
        folder = await asyncio.to_thread(fetch, source, store, tmp_path)
        store.close()
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / KEPT]
    needed = [path for path in files if not path.name.startswith(".")]
    headers = 200_000
    assert sum(store.asked.values()) <= sum(path.stat().st_size for path in needed) - done + headers
    assert all(path.read_bytes() == (published / path.relative_to(folder)).read_bytes() for path in needed)
    assert not list(tmp_path.rglob(".partial-*"))


def noted(cache: Path) -> list[int]:
    """Lengths of the ranges that were fetched of files that are not whole."""
    return [int(line.split()[1]) for path in cache.rglob("*.done") for line in path.read_text().splitlines()]
