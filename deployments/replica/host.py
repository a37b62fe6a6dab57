"""What a replica may use of its machine: the device that Ray gave it, threads, memory of a GPU."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from deployments.errors import PermanentError
from deployments.replica.device_check import Installation, advice, gpu_problem, installation

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
