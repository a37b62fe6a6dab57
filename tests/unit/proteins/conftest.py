"""One small model for the folder's tests."""

from pathlib import Path
from typing import Any

import pytest

from deployments.proteins.esm2 import Esm2
from tests.support.proteins.models import load_transformers, make_esm


@pytest.fixture(scope="session")
def esm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_esm(tmp_path_factory.mktemp("esm"))


@pytest.fixture(scope="session")
def esm(esm_folder: Path) -> Esm2:
    return Esm2(esm_folder)


@pytest.fixture(scope="session")
def stock(esm_folder: Path) -> Any:
    """The same model in transformers' own hands."""
    return load_transformers(esm_folder)
