"""The registry on SQLite alone: tests/database holds the SQL to both databases."""

from pathlib import Path

import pytest


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """An empty database."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"
