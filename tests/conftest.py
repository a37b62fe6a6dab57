"""Fixtures shared by the tests: a real object store, real databases, a real server; each started once."""

import gc
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import ray

from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.local.seaweed import WeedProcess
from tests.support.http.fakes import FakeServices
from tests.support.http.memory_http import fed_client, unfed_client
from tests.support.ports import free_block
from tests.support.server import ENDLESS, Server, running_server

pytest_plugins = ["tests.support.groups", "tests.support.postgres"]


def pytest_configure() -> None:
    """A shell lets what runs in its background ignore Ctrl-C, and so would the commands that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def storage_settings(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StorageSettings]:
    """A SeaweedFS that runs for the whole session, with its bucket made."""
    weed = WeedProcess(StorageSettings(local_port=free_block()), tmp_path_factory.mktemp("objects"))
    yield await weed.ready()
    await weed.stop()


@pytest.fixture
def object_store(storage_settings: StorageSettings) -> ObjectStore:
    """A client of the session's store."""
    return ObjectStore(storage_settings)


@pytest.fixture
def local_port() -> int:
    """The first of eight free ports for a local store of one's own."""
    return free_block()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """A function that writes a text file in the test's folder and returns its path."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def services() -> Iterator[FakeServices]:
    """What the routes work with, in memory. A test leaves no download open."""
    made = FakeServices()
    yield made
    assert made.storage.open_streams == 0


@pytest.fixture
async def client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app over `services`; it reads from the registry's feed, as in a running server."""
    async with fed_client(services) as client:
        yield client


@pytest.fixture
async def unfed(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """The same where the feed does not run: each read asks the registry."""
    async with unfed_client(services) as client:
        yield client


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray without Serve and without a dashboard, for tests of actors."""
    # Only while Ray starts: servers that other tests start must not have it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80_000_000,
            log_to_driver=False,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A whole server, started once for the session. It takes more steps than the profile allows."""
    steps = {"MOCHI_SERVE__MODEL__NUM_INFERENCE_STEPS__MAXIMUM": str(ENDLESS)}
    with running_server(tmp_path_factory.mktemp("server"), steps) as running:
        yield running
