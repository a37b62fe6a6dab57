"""Which test files share a process when several run at once: those that share what is slow to start."""

from typing import Any

import pytest

# Their tests share the session's server, or its Ray.
SHARING = {
    "server": (
        "system/browser/test_page",
        "system/test_client_commands",
        "system/test_openapi",
        "system/test_ray_job_batch",
        "system/test_sockets",
    ),
    "ray": (
        "integration/ray/test_prompt_classifier",
        "integration/ray/test_registry_link",
        "integration/ray/test_reservations",
    ),
    # Each starts a server or a Ray of its own, or breaks one: no two at a time.
    "whole paths": (
        "system/test_whole_path",
        "system/test_chaos",
        "integration/ray/test_exposure",
        "integration/ray/test_local_storage",
        "system/test_moving_samples",
    ),
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
