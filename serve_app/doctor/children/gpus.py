"""What torch and the driver say of the GPUs of this machine: `gpus.py use`, or `look` where replicas are at work.

To use one takes half a GB of its memory for a moment, which those may count on.
"""

import sys
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import torch

from deployments.replica.device_check import advice, gpu_problem, installation
from deployments.replica.gpu_state import NoGpuWatch, compute_processes, gpu_watch, why_unfit
from serve_app.doctor.children.run import answer


def main(how: str) -> None:
    found = installation()
    usable = torch.cuda.is_available()
    devices = [torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count())] if usable else []
    told = asdict(found) | {
        "usable": usable,
        "devices": [_device(device, how == "use") for device in devices],
        "advice": advice(found),
    }
    if not usable and found.gpus:
        told["error"] = gpu_problem(torch.device("cuda:0"))
    answer(told)


def _device(device: torch.device, use: bool) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    watch = gpu_watch(device)
    figures = watch.look()
    processes = {} if isinstance(watch, NoGpuWatch) else compute_processes(str(properties.uuid))
    return {
        "name": properties.name,
        "total": properties.total_memory,
        "used": figures.memory_used,
        "processes": processes,
        # Who holds its memory is a question of its own.
        "unfit": why_unfit(replace(figures, memory_used=None)),
        "problem": gpu_problem(device) if use else None,
    }


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main(*sys.argv[1:])
