"""Which tests share a process when several run at once: those of a folder that share what is slow to start."""

from typing import Any

import pytest

# All tests below one of these folders, the first that a test is in, go to one process. They share a server, or a Ray;
# those that start a Ray of their own do so one after the other.
SHARED = ("tests/system/server/", "tests/system/", "tests/integration/ray/")
# What takes longest begins first, so that nothing is waited for alone in the end; but no two that start a Ray begin
# together, as the first files do: on two cores they would wait for each other.
ORDER = (
    "tests/system/server/",
    "tests/database/",
    "tests/integration/storage/",
    "tests/system/",
    "tests/integration/http/",
    "tests/integration/ray/",
    "tests/tools/",
    "tests/integration/",
)


def group_of(nodeid: str) -> str:
    """The group of a test: its folder if the folder shares something, else its file."""
    return next((folder for folder in SHARED if nodeid.startswith(folder)), nodeid.partition("::")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((n for n, folder in enumerate(ORDER) if item.nodeid.startswith(folder)), len(ORDER))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A group goes to one process as a whole. (Marks with `--dist loadgroup` do not work with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)
