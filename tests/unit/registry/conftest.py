"""A registry without Ray, for the tests that want no settings of their own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.registry.world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}")
    world.start()
    yield world
    await world.stop()
