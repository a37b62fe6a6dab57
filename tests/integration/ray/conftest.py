"""Ray and Serve, each started once: the tests of this folder run in one process."""

from collections.abc import Iterator

import pytest
import ray
from ray import serve


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray without a dashboard, for tests of actors."""
    # Only while Ray starts: servers that other tests start must not have it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        _start()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def serve_cluster(ray_cluster: None) -> Iterator[None]:
    """Serve without HTTP, for tests of deployments; each deletes its application."""
    serve.start(http_options={"location": "NoServer"})
    yield
    serve.shutdown()


def _start(tries: int = 5) -> None:
    """Ray gives itself half a minute to start, whatever else the machine does; then it is tried again."""
    for left in reversed(range(tries)):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=80_000_000,
                log_to_driver=False,
            )
            return
        except Exception as error:  # Ray has no class of its own for it
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
