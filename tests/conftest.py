"""Fixtures shared by the tests: a real object store on free ports."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from deployments.object_store import ObjectStore
from deployments.settings import StorageSettings
from serve_app.ports import MAX_PORT, free_ports, is_free
from serve_app.weed_command import PORTS
from serve_app.weed_process import WeedProcess


def free_block() -> int:
    """The first of as many consecutive free ports as the local store needs."""
    while True:
        first = free_ports(1)[0]
        if first + len(PORTS) <= MAX_PORT and all(is_free(first + i) for i in range(len(PORTS))):
            return first


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
