"""Which device a replica computes on: what Ray gave it, not what the machine happens to have.

How much memory this process may use: the machine's, or its container's where that is less. Linux's own files.

A container's limit stands in its control group (version 1 or 2) or in one above it. File pages that the kernel would
give up first count as available, as they do in the machine's own figure.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

_logger = logging.getLogger("ray.serve")


def replica_device() -> torch.device:
    """The device of this replica: ``cuda:0`` if Ray assigned a GPU and CUDA works, else the CPU; logged."""
    assigned = assigned_gpus()
    device = choose_device(assigned, torch.cuda.is_available())
    if assigned and device.type == "cpu":
        _logger.warning(
            "GPU %s is assigned but CUDA is not usable here; running on the CPU. Check the NVIDIA driver and that "
            "torch is built for CUDA (torch.version.cuda is %s)",
            ", ".join(assigned),
            torch.version.cuda,
        )
    else:
        _logger.info("running on %s", device)
    return device


def choose_device(assigned: list[str], cuda_usable: bool) -> torch.device:
    """``cuda:0``, the first of the visible GPUs, needs both an assignment and a usable CUDA."""
    return torch.device("cuda:0") if assigned and cuda_usable else torch.device("cpu")


def assigned_gpus() -> list[str]:
    """Ids of the GPUs that Ray gave this process; none outside Ray."""
    import ray  # not above: the GPU benchmark uses this file where Ray is not installed

    if not ray.is_initialized():
        return []
    ids = ray.get_runtime_context().get_accelerator_ids()
    return list(ids.get("GPU", []))


def set_threads(requested: int | None) -> None:
    """Let torch use `requested` CPU threads, all cores by default: Ray sets OMP_NUM_THREADS to num_cpus or 1."""
    torch.set_num_threads(requested or os.cpu_count() or 1)


def describe_device(device: torch.device) -> str:
    """For people, e.g. ``cpu (2 threads)`` or ``cuda:0 NVIDIA H100 80GB HBM3``."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})"


ROOT = Path("/")
UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class _Files:
    """Names of a control group's files in one of the two versions."""

    mount: str
    limit: str
    used: str
    inactive: str


_V2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_V1 = _Files("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def total_bytes(root: Path = ROOT) -> int:
    """All the memory that this process and its neighbours share."""
    return min([_machine(root)["MemTotal"], *(limit for limit, _ in _limits(root))])


def available_bytes(root: Path = ROOT) -> int:
    """What can be taken now without swapping and without being killed."""
    return max(0, min([_machine(root)["MemAvailable"], *(left for _, left in _limits(root))]))


def _machine(root: Path) -> dict[str, int]:
    """MemTotal and MemAvailable in bytes; without /proc both are the machine's whole memory."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"MemTotal": whole, "MemAvailable": whole}
    pairs = (line.split(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs if name in ("MemTotal", "MemAvailable")}


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, what is left of it) of every control group above this process that has a limit."""
    for files, group in _groups(root):
        mount = root / files.mount
        for folder in {mount / level for level in (group, *group.parents)}:
            limit = _number(folder / files.limit)
            if limit is not None and limit < UNLIMITED:
                yield limit, limit - (_number(folder / files.used) or 0) + _inactive(folder, files.inactive)


def _groups(root: Path) -> Iterator[tuple[_Files, PurePosixPath]]:
    """This process's control groups that may limit memory, by /proc/self/cgroup.

    In a container the path is often the host's, which cannot be seen from inside; the mount itself, its last
    parent, is then the container's group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        relative = PurePosixPath(path.lstrip("/"))
        if number == "0" and not controllers:
            yield _V2, relative
        elif "memory" in controllers.split(","):
            yield _V1, relative


def _number(path: Path) -> int | None:
    """The file's number; None for `max` and where there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
