"""How many bytes a piece of work takes at its highest, on CUDA and in this process.

On CUDA the allocator says it exactly. On the CPU the process's high-water mark is read: it counts what libraries take
beside torch (the included model: 1.3 to 1.8 times what torch asks for), but noise of some 100 kB, and more on machines
with many cores, where the kernel counts in batches, blurs small models.
"""

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

PROC = Path("/proc/self")  # Linux's files of this process

Work = Callable[[], object]


def cuda_peak(work: Work) -> int:
    """Bytes that `work` allocates at once on the current CUDA device, beside what lies there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def process_peak(work: Work, proc: Path = PROC) -> int:
    """Bytes by which `work` takes the process's memory above where it is; never negative.

    Linux: freed memory that malloc keeps is given back first, or `work` would use it unseen; then the high-water mark
    is reset. Elsewhere, and where /proc is not writable, the mark cannot be reset: it only shows what goes above the
    highest point since the process began.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
    before = _reset_high_water(proc)
    work()
    return max(0, high_water(proc) - before)


def high_water(proc: Path = PROC) -> int:
    """Bytes of the process at its highest, since it began or since the mark was reset."""
    try:
        return _status_bytes(proc, "VmHWM")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_high_water(proc: Path) -> int:
    """Bytes that the process has now, or its highest so far where the mark cannot be reset."""
    try:
        (proc / "clear_refs").write_text("5")
    except OSError:
        return high_water(proc)
    return _status_bytes(proc, "VmRSS")


def _status_bytes(proc: Path, name: str) -> int:
    for line in (proc / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{proc}/status has no {name}")
