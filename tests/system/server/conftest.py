"""One whole server for all tests of this folder, which kill its parts and therefore run in one process."""

from collections.abc import Iterator

import pytest

from tests.support.servers.server import ENDLESS, Server, running_server

STEP_S = 0.05
CHECKPOINT_S = 1
SETTINGS = {
    # More steps than the profile allows.
    "MOCHI_SERVE__MODEL__NUM_INFERENCE_STEPS__MAXIMUM": str(ENDLESS),
    # A step takes a while and no processor, as with a large model: what is stopped in the middle is still in work then.
    "MOCHI_SERVE__SAMPLING__MIN_STEP_S": str(STEP_S),
    "MOCHI_SERVE__SAMPLING__CHECKPOINT_S": str(CHECKPOINT_S),
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A whole server."""
    with running_server(tmp_path_factory.mktemp("server"), SETTINGS) as running:
        yield running
