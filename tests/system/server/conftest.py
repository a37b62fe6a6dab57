"""One whole server for all tests of this folder, which therefore run in one process."""

from collections.abc import Iterator

import pytest

from tests.support.servers.server import ENDLESS, Server, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A whole server. It takes more steps than the profile allows."""
    steps = {"MOCHI_SERVE__MODEL__NUM_INFERENCE_STEPS__MAXIMUM": str(ENDLESS)}
    with running_server(tmp_path_factory.mktemp("server"), steps) as running:
        yield running
