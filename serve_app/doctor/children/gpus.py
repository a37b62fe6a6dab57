"""What torch and the driver say of the GPUs of this machine; each is used once."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from deployments.replica.device_check import Installation, advice, gpu_problem, installation
from deployments.replica.gpu_state import NoGpuWatch, compute_processes, gpu_watch, why_unfit
from serve_app.doctor.children.run import answer


def main() -> None:
    found = installation()
    usable = torch.cuda.is_available()
    devices = [_device(torch.device(f"cuda:{i}"), found) for i in range(torch.cuda.device_count())] if usable else []
    told = asdict(found) | {"usable": usable, "devices": devices, "advice": advice(found)}
    if not usable and found.gpus:
        told["error"] = gpu_problem(torch.device("cuda:0"))
    answer(told)


def _device(device: torch.device, found: Installation) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    watch = gpu_watch(device)
    figures = watch.look()
    processes = {} if isinstance(watch, NoGpuWatch) else compute_processes(str(properties.uuid))
    return {
        "name": properties.name,
        "total": properties.total_memory,
        "used": figures.memory_used,
        "processes": processes,
        "unfit": why_unfit(figures),
        "problem": gpu_problem(device),
    }


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
