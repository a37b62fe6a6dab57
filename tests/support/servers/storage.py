"""Fixtures of tests that need a real object store, started once for the tests of a process."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.local.store.seaweed import LocalStorage
from tests.support.servers.ports import free_block


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def storage_settings(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StorageSettings]:
    """A SeaweedFS that runs for the whole session, with its bucket made."""
    storage = LocalStorage(StorageSettings(local_port=free_block()), tmp_path_factory.mktemp("objects"))
    yield await storage.ready()
    await storage.stop()


@pytest.fixture
def object_store(storage_settings: StorageSettings) -> ObjectStore:
    """A client of the session's store."""
    return ObjectStore(storage_settings)


@pytest.fixture
def local_port() -> int:
    """The first of eight free ports for a local store of one's own."""
    return free_block()
