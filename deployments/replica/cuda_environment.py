"""What torch reads of the environment before it uses a GPU, where the operator has not set it."""

import os
from collections.abc import MutableMapping

import torch

ALLOCATOR = "expandable_segments:True"
"""Videos of many shapes leave holes in memory of fixed pieces."""

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch reads both, the first one since 2.9

DEFAULTS = {
    # cuDNN's attention builds a plan for each length of a sequence, which takes up to a second; so it builds one up to
    # each power of two.
    "TORCH_CUDNN_SDPA_AVOID_RECOMPILE": "1",
}


def set_cuda_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set `DEFAULTS`, and the allocator, in this process; what is set already stays. Before the first use of CUDA."""
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    if any(name in environ for name in ALLOCATOR_VARIABLES):
        return
    environ[ALLOCATOR_VARIABLES[0]] = ALLOCATOR
    # torch has read the variable when it was imported.
    set_allocator = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if set_allocator is not None:
        set_allocator(ALLOCATOR)
