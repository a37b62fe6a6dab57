"""The memory of the machine, or of this process's container.

A container's limit stands in its control group (version 1 or 2) or in one above it, as files of
Linux. File pages that the kernel would give up first count as available, as they do in the
machine's own figure.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
UNLIMITED = 1 << 60  # version 1 writes a huge number where there is no limit


def total_bytes(root: Path = ROOT) -> int:
    """The memory of the machine, or of this process's container where that is less."""
    return min([_machine_bytes(root, "MemTotal"), *(group.limit for group in _limits(root))])


def available_bytes(root: Path = ROOT) -> int:
    """The memory that can be taken now without swapping and without being killed."""
    return max(0, min([_machine_bytes(root, "MemAvailable"), *(group.available for group in _limits(root))]))


def _machine_bytes(root: Path, name: str) -> int:
    """A line of /proc/meminfo; where there is none, the machine's whole memory."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@dataclass(frozen=True, slots=True)
class _Version:
    """Where the files of control groups lie in one of the two versions, and their names."""

    mount: str
    limit: str
    used: str
    inactive: str  # in memory.stat: the file pages that the kernel gives up first


_V2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_V1 = _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@dataclass(frozen=True, slots=True)
class _Limit:
    """The memory of one control group, in bytes."""

    limit: int
    available: int


def _limits(root: Path) -> Iterator[_Limit]:
    """Of every control group above this process that has a limit."""
    for version, group in _memory_groups(root):
        mount = root / version.mount
        for folder in {mount / level for level in (group, *group.parents)}:
            limit = _read_number(folder / version.limit)
            if limit is not None and limit < UNLIMITED:
                used = _read_number(folder / version.used) or 0
                yield _Limit(limit, limit - used + _read_stat(folder, version.inactive))


def _memory_groups(root: Path) -> Iterator[tuple[_Version, PurePosixPath]]:
    """This process's control groups that may limit memory, by /proc/self/cgroup.

    In a container the path is often the host's, which cannot be seen from inside; the mount itself,
    its last parent, is then the container's group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        group = PurePosixPath(path.lstrip("/"))
        if number == "0" and not controllers:
            yield _V2, group
        elif "memory" in controllers.split(","):
            yield _V1, group


def _read_number(path: Path) -> int | None:
    """The file's number; None for `max` and where there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _read_stat(folder: Path, name: str) -> int:
    """A number of a group's memory.stat, 0 if it has none."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
