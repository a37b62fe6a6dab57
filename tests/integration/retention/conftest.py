"""A bucket of these tests alone, and databases."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from deployments.settings import StorageSettings
from serve_app.database.connection import Database
from tests.support.registry.retention import AgingStore, CrashingDatabase


@pytest_asyncio.fixture
async def store(storage_settings: StorageSettings) -> AsyncIterator[AgingStore]:
    """Empty at the begin and the end of each test."""
    store = AgingStore(storage_settings.model_copy(update={"bucket": "retention-tests"}))
    await store.ensure_bucket()
    yield store
    await store.clear()


@pytest.fixture
def database(database_url: str) -> Iterator[CrashingDatabase]:
    database = CrashingDatabase(database_url)
    yield database
    database.close()


@pytest.fixture
def other_database(tmp_path: Path) -> Iterator[Database]:
    """Of another installation."""
    database = Database(f"sqlite:///{tmp_path / 'other.db'}")
    yield database
    database.close()
