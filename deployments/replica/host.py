"""Which device a replica computes on: what Ray gave it, not what the machine happens to have."""

import logging
import os

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
