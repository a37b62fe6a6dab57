"""Which tests share a process, when several run at once: those that share what is slow to start, or that starts Ray."""

import pytest

SERVER = "server"
# Each starts servers or a Ray of its own: two at once would take the cores from each other.
WHOLE_PATHS = ("test_chaos", "test_exposure", "test_local_storage", "test_moving_samples", "test_whole_path")
SHARED = {"server", "ray_cluster"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a server run in one process, one after the other; those of any other file together in one."""
    for item in items:
        module = item.nodeid.partition("::")[0]
        name = module.rpartition("/")[2].removesuffix(".py")
        fixtures = set(getattr(item, "fixturenames", ()))
        group = SERVER if name in WHOLE_PATHS or fixtures & SHARED else module
        item.add_marker(pytest.mark.xdist_group(group))
