"""The app of the proteins over devices without Ray, which compute with a small model."""

from collections.abc import AsyncIterator

import pytest

from deployments.proteins.esm2 import Esm2
from tests.support.proteins.api import ProteinApi, running_api
from tests.support.proteins.models import make_esm


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Esm2:
    return Esm2(make_esm(tmp_path_factory.mktemp("esm") / "model"))


@pytest.fixture
async def api(model: Esm2) -> AsyncIterator[ProteinApi]:
    async with running_api(model) as api:
        yield api
