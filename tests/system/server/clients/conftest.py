"""LiteLLM's proxy in front of the server."""

from collections.abc import Iterator

import pytest

from tests.support.clients.litellm_proxy import running_proxy
from tests.support.servers.server import Server


@pytest.fixture(scope="session")
def litellm_proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    with running_proxy(server.url, tmp_path_factory.mktemp("litellm")) as url:
        yield url
