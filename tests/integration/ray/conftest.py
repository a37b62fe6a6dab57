"""Ray without Serve, started once: the tests of this folder run in one process."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray without Serve and without a dashboard, for tests of actors."""
    # Only while Ray starts: servers that other tests start must not have it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80_000_000,
            log_to_driver=False,
        )
    yield
    ray.shutdown()
