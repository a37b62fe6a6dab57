"""Time, memory, waits and kernels of a piece of work, on CUDA or, for a dry run, on the CPU."""

import collections
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]

TOP_KERNELS = 12
# The first kind of which a name holds a word; torch's compiler names its kernels after the operations fused in them.
KINDS = {
    "fused": ("triton_poi", "triton_red", "triton_per"),
    "attention": ("flash", "fmha", "sdpa", "attention", "attn"),
    "convolution": ("conv", "fprop"),
    "product": ("gemm", "gemv", "nvjet", "cutlass", "cublas", "_mm", "triton_tem", "aten::mm", "aten::addmm", "linear"),
    "copy": ("memcpy", "copy", "cat", "pad"),
}
OTHER = "elementwise"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(device: torch.device, work: Work, runs: int = 3, warm_up: int = 1) -> float:
    """Median time of `runs` runs: on CUDA the device's own, by events, else by the clock."""
    for _ in range(warm_up):
        work()
    if device.type != "cuda":
        return statistics.median(first_ms(device, work) for _ in range(runs))
    events = [(_event(), _event()) for _ in range(runs)]
    for start, end in events:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(float(start.elapsed_time(end)) for start, end in events)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def first_ms(device: torch.device, work: Work) -> float:
    """One run by the clock, all that is done only once included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def peak_bytes(device: torch.device, work: Work) -> int | None:
    """The most that was allocated at once while `work` ran, what lay there before included; CUDA only."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def gigabytes(count: int | None) -> float | None:
    return None if count is None else rounded(count / 1e9)


def timed(device: torch.device, work: Work, runs: int = 2) -> tuple[float, dict[str, Any]]:
    """Median milliseconds, and the same as figures with the first run's time and the memory.

    Both come from one run, which is the warm-up too: a step of a full-size video takes seconds.
    """
    first: list[float] = []
    peak = peak_bytes(device, lambda: first.append(first_ms(device, work)))
    ms = milliseconds(device, work, runs, warm_up=0)
    return ms, {"s": seconds(ms), "first_s": seconds(first[0]), "peak_gb": gigabytes(peak)}


def seconds(ms: float) -> float:
    return rounded(ms / 1e3)


def tflops(operations: int, ms: float) -> float:
    """10^12 operations a second."""
    return operations / ms / 1e9


def rounded(value: float) -> float:
    """To four digits, whatever its size."""
    return float(f"{value:.4g}")


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference by the norm of `wanted`, in fp64."""
    return rounded(float((got.double() - wanted.double()).norm() / wanted.double().norm()))


def count_syncs(device: torch.device, work: Work) -> int | None:
    """How often `work` makes the host wait for the device, by torch's own warnings; CUDA only."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize(device)
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def kernels(device: torch.device, work: Work) -> list[tuple[str, float, int]]:
    """(name, milliseconds in all, calls) of each kernel that `work` runs, the longest first."""
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiled:
        work()
        synchronize(device)
    events = profiled.key_averages()
    took = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    found = [(event.key, getattr(event, took) / 1e3, event.count) for event in events]
    return sorted((kernel for kernel in found if kernel[1] > 0), key=lambda kernel: -kernel[1])


def by_kind(device: torch.device, work: Work) -> dict[str, Any]:
    """Milliseconds of each kind of kernel, and the longest kernels by name."""
    found = kernels(device, work)
    spent: collections.Counter[str] = collections.Counter()
    for name, ms, _ in found:
        spent[kind_of(name)] += ms  # type: ignore[assignment]
    kinds = {f"{kind}_ms": rounded(spent[kind]) for kind in (*KINDS, OTHER)}
    return kinds | {"top": [(name[:80], rounded(ms), count) for name, ms, count in found[:TOP_KERNELS]]}


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), OTHER)
