"""What the device itself can do, measured: the ceilings that a step is held against. CUDA only."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SQUARE = 8192
COPY_BYTES = 2 * 1024**3
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CUDA = torch.device("cuda")


def milliseconds(work: Callable[[], object], runs: int, warm_up: int = 2) -> list[float]:
    """Time on the device of each of `runs` runs, by CUDA events."""
    for _ in range(warm_up):
        work()
    events = [(_event(), _event()) for _ in range(runs)]
    for start, end in events:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return [float(start.elapsed_time(end)) for start, end in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def tflops(operations: float, ms: float) -> float:
    return operations / ms / 1e9


def matmul_tflops(m: int, k: int, n: int, runs: int = 20) -> float:
    """bf16 [m, k] times [k, n], as a linear layer stores it; median."""
    left = torch.randn(m, k, device=CUDA, dtype=torch.bfloat16)
    right = torch.randn(n, k, device=CUDA, dtype=torch.bfloat16)
    return round(tflops(2 * m * k * n, statistics.median(milliseconds(lambda: F.linear(left, right), runs))), 1)


def copy_gb_per_s(runs: int = 20) -> float:
    """Bytes read plus bytes written in a second, GB/s; median."""
    source = torch.empty(COPY_BYTES, device=CUDA, dtype=torch.uint8)
    target = torch.empty_like(source)
    return round(2 * COPY_BYTES / statistics.median(milliseconds(lambda: target.copy_(source), runs)) / 1e6, 1)


def attention_tflops(backend: str, heads: int, tokens: int, dim: int, runs: int = 5) -> float | str:
    """SDPA alone at [1, heads, tokens, dim] in bf16; median, or why the backend does not run it."""
    query, key, value = (torch.randn(1, heads, tokens, dim, device=CUDA, dtype=torch.bfloat16) for _ in range(3))

    def attend() -> object:
        with sdpa_kernel(BACKENDS[backend]):
            return F.scaled_dot_product_attention(query, key, value)

    try:
        return round(tflops(4 * heads * dim * tokens**2, statistics.median(milliseconds(attend, runs))), 1)
    except RuntimeError as error:
        return str(error).splitlines()[0]


def matmul_shapes(tokens: int, width: int, inner: int) -> dict[str, tuple[int, int, int]]:
    """The linear layers of a block over `tokens` video tokens, as (m, k, n)."""
    return {
        f"square {SQUARE}": (SQUARE, SQUARE, SQUARE),
        "attention projection": (tokens, width, width),
        "feed-forward in": (tokens, width, 2 * inner),
        "feed-forward out": (tokens, inner, width),
    }


def measure_ceilings(tokens: int, heads: int, dim: int) -> dict[str, Any]:
    """All ceilings at the shapes of a video of `tokens` tokens, guided, so that linear layers see twice as many."""
    width = heads * dim
    shapes = matmul_shapes(2 * tokens, width, (4 * width * 2) // 3)
    return {
        "matmul_tflops": {name: matmul_tflops(*shape) for name, shape in shapes.items()},
        "copy_gb_per_s": copy_gb_per_s(),
        "attention_tflops": {name: attention_tflops(name, heads, tokens, dim) for name in BACKENDS},
    }
