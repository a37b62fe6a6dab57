"""Which test files share a process when several run at once: those that share what is slow to start."""

from typing import Any

import pytest

# Their tests share the session's server, or its Ray.
SHARING = {
    "server": ("browser/test_page", "test_client_commands", "test_openapi", "test_ray_job_batch", "test_sockets"),
    "ray": ("test_prompt_classifier", "test_prompt_safety", "test_registry_link", "test_reservations"),
    # Each starts a server or a Ray of its own, or breaks one: no two at a time.
    "whole paths": ("test_whole_path", "test_chaos", "test_exposure", "test_local_storage", "test_moving_samples"),
}
_GROUPS = {f"tests/{file}.py": group for group, files in SHARING.items() for file in files}


def group_of(nodeid: str) -> str:
    """The group of a test; a file that shares nothing is one by itself."""
    file = nodeid.partition("::")[0]
    return _GROUPS.get(file, file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that nothing is waited for alone in the end."""
    items.sort(key=lambda item: group_of(item.nodeid) not in SHARING)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A group goes to one process as a whole. (Marks with `--dist loadgroup` do not work with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)
