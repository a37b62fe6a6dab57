"""What a replica may use of its machine: the device that Ray gave it, the memory of its container.

A container's limit stands in its control group (version 1 or 2) or in one above it, as files of
Linux. File pages that the kernel would give up first count as available, as they do in the
machine's own figure.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from deployments.errors import PermanentError
from deployments.replica.device_check import Installation, advice, gpu_problem, installation

ROOT = Path("/")
UNLIMITED = 1 << 60  # version 1 writes a huge number where there is no limit

_logger = logging.getLogger("ray.serve")


def replica_device(cpu_fallback: bool = False) -> torch.device:
    """The device of this replica: what Ray gave it, not what the machine happens to have. For the rest `choose_device`.

    Args:
        cpu_fallback: run on the CPU if the GPU does not work.
    """
    return choose_device(assigned_gpus(), cpu_fallback)


def assigned_gpus() -> list[str]:
    """Ids of the GPUs that Ray gave this process; none outside Ray."""
    import ray  # not above: the GPU benchmark uses this file where Ray is not installed

    if not ray.is_initialized():
        return []
    ids = ray.get_runtime_context().get_accelerator_ids()
    return list(ids.get("GPU", []))


def choose_device(
    assigned: Sequence[str],
    cpu_fallback: bool,
    find_problem: Callable[[torch.device], str | None] = gpu_problem,
    find_installation: Callable[[], Installation] = installation,
) -> torch.device:
    """``cuda:0``, the first of the visible GPUs, if one is assigned, else the CPU; logged.

    Args:
        assigned: ids of the GPUs.
        cpu_fallback: take the CPU, with a warning, if the assigned GPU does not work.
        find_problem: uses the device, and says what is wrong with it.
        find_installation: what is installed here.

    Raises:
        PermanentError: `gpu_unusable`: the assigned GPU does not work; a line that says why and what to do.
    """
    device = torch.device("cuda:0" if assigned else "cpu")
    problem = find_problem(device) if assigned else None
    if problem is None:
        _logger.info("running on %s", device)
        return device
    what = f"GPU {', '.join(assigned)} is assigned to this replica and does not work ({problem}); "
    what += advice(find_installation())
    if not cpu_fallback:
        raise PermanentError("gpu_unusable", f"{what}; or set the stage's cpu_fallback to true to run it on the CPU")
    _logger.warning("%s; running on the CPU, as cpu_fallback says", what)
    return torch.device("cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread of the processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def limit_memory(device: torch.device, fraction: float | None) -> None:
    """Bound what torch may allocate on a GPU to this part of its memory; None leaves it all. The context and the
    libraries' own memory, about 1 GB, come on top."""
    if device.type == "cuda" and fraction is not None:
        torch.cuda.set_per_process_memory_fraction(fraction, device)


def set_threads(requested: int | None) -> None:
    """Let torch use `requested` CPU threads, all cores by default: Ray sets OMP_NUM_THREADS to num_cpus or 1."""
    torch.set_num_threads(requested or os.cpu_count() or 1)


def describe_device(device: torch.device) -> str:
    """For people, e.g. ``cpu (2 threads)`` or ``cuda:0 NVIDIA H100 80GB HBM3``."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})"


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
