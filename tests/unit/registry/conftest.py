"""A registry without Ray, on SQLite alone: tests/database holds the SQL to both databases."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.registry.world import World


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """An empty database."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """For tests that want no settings of their own."""
    world = World(database_url)
    world.start()
    yield world
    await world.stop()
