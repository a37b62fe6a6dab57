"""GPUs against the profile: whether torch can use them, what else is on them, whether the weights fit."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil

from deployments.settings import StageSettings
from serve_app.config import WEIGHTED_PARTS
from serve_app.doctor.checks.model_bytes import weights_by_part
from serve_app.doctor.children.run import ChildError
from serve_app.doctor.finding import Finding, fault, ok, skipped, split_fault, warning
from serve_app.doctor.surroundings import Surroundings
from serve_app.errors import StartupError
from serve_app.local.preflight import check_gpus

CHILD_S = 120.0
NAMES = ("gpus", "gpu_works", "gpu_processes", "gpu_memory")
# Of each process on a GPU, beside what torch allocates.
CONTEXT = 600_000_000
SMALLER = (
    "take a profile for a smaller card (docs/operations.md, Models and profiles), set model.weights to int8, or share "
    "the memory out anew by memory_fraction"
)
FREE_IT = "end them, or take another GPU with CUDA_VISIBLE_DEVICES"


def check_gpu(s: Surroundings) -> Iterator[Finding]:
    """All questions about GPUs, of one look at them in a process of its own."""
    needed = [name for name, stage in _stages(s).items() if stage.num_gpus]
    if s.ray_address:
        yield from (skipped(name, "replicas run on the cluster, see cluster_resources") for name in NAMES)
        return
    try:
        found = s.ask("gpus", "look" if s.server is not None else "use", limit_s=CHILD_S)
    except ChildError as error:
        told = f"torch could not look for GPUs: {error}"
        if needed:
            yield fault("gpus", told, "see `nvidia-smi`; a driver that hangs needs a restart of the machine")
        else:
            yield warning("gpus", told, "the profile needs none: without one, hide it by CUDA_VISIBLE_DEVICES=''")
        return
    devices = found["devices"]
    yield _count(s, found, needed)
    if not devices:
        yield from (skipped(name, "there is no GPU that torch can use") for name in NAMES[1:])
        return
    yield _works(s, devices, found["advice"])
    yield _others(s, devices)
    yield _fits(s, min(device["total"] for device in devices))


def _count(s: Surroundings, found: dict[str, Any], needed: list[str]) -> Finding:
    devices = found["devices"]
    driver = f"driver {found['driver']}" if found["driver"] else "no NVIDIA driver"
    told = f"torch {found['torch']} (CUDA {found['cuda'] or 'none'}), {driver}, "
    told += ", ".join(f"{one['name']} {one['total'] / 1e9:.0f} GB" for one in devices) or "no GPU that torch can use"
    if not needed:
        return ok("gpus", f"{told}; the profile needs none")
    if not devices:
        error = f" ({found['error']})" if found.get("error") else ""
        advice = f"{found['advice']}; or take configs/shapes.yaml, which needs no GPU"
        return fault("gpus", f"{told}{error}; the profile wants one for {', '.join(needed)}", advice)
    try:
        check_gpus(s.settings, len(devices))
    except StartupError as error:
        return split_fault("gpus", str(error))
    return ok("gpus", told)


def _works(s: Surroundings, devices: list[dict[str, Any]], advice: str) -> Finding:
    for i, device in enumerate(devices):
        if device["problem"]:
            return fault("gpu_works", f"GPU {i} multiplies no matrices: {device['problem']}", advice)
        if device["unfit"]:
            told, _, what = device["unfit"].partition(": ")
            return fault("gpu_works", f"GPU {i}: {told}", what or "see `nvidia-smi -q`")
    if s.server is not None:
        return ok("gpu_works", "the driver knows nothing bad; the running server's replicas tried them at their start")
    return ok("gpu_works", f"{len(devices)} multiplied two matrices rightly")


def _others(s: Surroundings, devices: list[dict[str, Any]]) -> Finding:
    """What processes hold that are not the server's."""
    own = _own_pids(s)
    shares = sum(stage.memory_fraction or 0 for stage in _stages(s).values()) or 1.0
    told = []
    for i, device in enumerate(devices):
        foreign = {int(pid): held or 0 for pid, held in device["processes"].items() if int(pid) not in own}
        held = sum(foreign.values()) if s.server is not None else device["used"]
        if held is not None and held > CONTEXT and held > (1 - min(shares, 0.99)) * device["total"]:
            named = ", ".join(f"{pid} ({_name(pid)})" for pid in foreign) or "processes that are hidden here"
            told.append(f"GPU {i}: {held / 1e9:.1f} of {device['total'] / 1e9:.1f} GB are held by {named}")
    if told:
        return warning("gpu_processes", "; ".join(told), FREE_IT)
    return ok("gpu_processes", "no other process holds memory that the profile counts on")


def _fits(s: Surroundings, total: int) -> Finding:
    """The weights of each stage in its share; shares that are on one GPU together."""
    stages = {name: stage for name, stage in _stages(s).items() if stage.num_gpus}
    if not stages:
        return ok("gpu_memory", "the profile needs none")
    shared = {name: stage for name, stage in stages.items() if stage.num_gpus < 1}
    fractions = sum(stage.memory_fraction or 0 for stage in shared.values())
    is_one = sum(stage.num_gpus * max(1, stage.min_replicas) for stage in shared.values()) <= 1
    if is_one and fractions * total + len(shared) * CONTEXT > total:
        told = (
            f"memory_fraction of {' and '.join(shared)} are {fractions:g} together, and each process takes 0.6 GB more"
        )
        return fault("gpu_memory", f"{told} of the GPU's {total / 1e9:.1f}", "lower them until they fit")
    weights = weights_by_part(s)
    if weights is None:
        return skipped("gpu_memory", "how large the weights are will be known once the model is here")
    parts = {name: weights[WEIGHTED_PARTS[stage]] for name, stage in zip(_stages(s), WEIGHTED_PARTS, strict=True)}
    for name, stage in stages.items():
        share = (stage.memory_fraction or 1) * total
        if parts[name] > share:
            told = f"the weights of the {name} take {parts[name] / 1e9:.2f} GB, its share of the GPU is "
            return fault("gpu_memory", f"{told}{share / 1e9:.2f} of {total / 1e9:.2f}", SMALLER)
    together = sum(parts[name] for name in shared) if is_one else 0
    if together > total:
        told = f"the weights of {' and '.join(shared)} take {together / 1e9:.2f} GB of one GPU's {total / 1e9:.2f}"
        return fault("gpu_memory", told, SMALLER)
    listed = ", ".join(f"{name} {parts[name] / 1e9:.1f}" for name in stages)
    return ok("gpu_memory", f"weights in GB: {listed}; the smallest GPU has {total / 1e9:.1f}")


def _stages(s: Surroundings) -> dict[str, StageSettings]:
    """In the order of WEIGHTED_PARTS."""
    return {"encoder": s.settings.encoder, "sampler": s.settings.sampler, "decoder": s.settings.decoder}


def _own_pids(s: Surroundings) -> set[int]:
    if s.server is None:
        return set()
    with suppress(psutil.Error):
        return {s.server.pid, *(child.pid for child in s.server.children(recursive=True))}
    return {s.server.pid}


def _name(pid: int) -> str:
    with suppress(psutil.Error):
        return psutil.Process(pid).name()
    return "unknown"
