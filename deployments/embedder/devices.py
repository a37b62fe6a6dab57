"""How many replicas of the protein model there are, and what each takes. Pure."""

import math
import os
from dataclasses import dataclass

from deployments.embedder.settings import CPU_PASS_TOKENS, GPU_PASS_TOKENS, ProteinSettings


@dataclass(frozen=True, slots=True)
class PlannedDevices:
    """Replicas that are equal."""

    count: int
    num_gpus: float  # of each
    torch_threads: int | None  # of each; None: all cores
    pass_tokens: int  # of a pass


def planned_devices(settings: ProteinSettings, gpus: float, cores: int | None = None) -> PlannedDevices:
    """One replica for each device that the cluster has, unless the settings say otherwise.

    Args:
        gpus: of the whole cluster, as Ray counts them.
        cores: of this machine's processors; by default all that this process sees.
    """
    num_gpus = (1.0 if gpus >= 1 else 0.0) if settings.num_gpus is None else settings.num_gpus
    fitting = math.floor(gpus / num_gpus + 1e-9) if num_gpus else 1
    count = max(1, fitting) if settings.replicas is None else settings.replicas
    threads = settings.torch_threads
    if threads is None and not num_gpus:
        threads = max(1, (cores or os.cpu_count() or 1) // count)
    tokens = settings.pass_tokens or (GPU_PASS_TOKENS if num_gpus else CPU_PASS_TOKENS)
    return PlannedDevices(count, num_gpus, threads, tokens)
