"""One whole server for all tests of this folder, which break nothing of it, and LiteLLM's proxy in front of it."""

from collections.abc import Iterator

import pytest

from tests.support.clients.litellm_proxy import running_proxy
from tests.support.servers.server import Server, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def litellm_proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    with running_proxy(server.url, tmp_path_factory.mktemp("litellm")) as url:
        yield url
