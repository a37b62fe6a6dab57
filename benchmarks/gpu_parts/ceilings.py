"""What the device itself can do: products, copies and attention alone, at the shapes of the model."""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common.machine import nvidia_smi
from benchmarks.gpu_parts.bench import DTYPE, Bench, NotHereError, Row, Rows, Values
from benchmarks.gpu_parts.measuring import first_ms, kernels, milliseconds, relative_error, rounded, synchronize, tflops
from deployments.mochi.fp8_attention import attend_fp8, round_to_fp8
from deployments.mochi.full_attention import attend_full

RUNS = 10
PICKED = 16
KERNELS = {
    "default": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def products(bench: Bench) -> Rows:
    """bf16 and fp8 at the model's shapes, bf16 under load as when a video is made, and a copy."""
    shapes = product_shapes(2 * bench.tokens(bench.sizes.long_frames), bench.sizes.model_width)
    square = bench.sizes.square
    for name, shape in {"square": (square, square, square), **shapes}.items():
        yield Row("product", name, partial(bf16_product, bench, *shape))
        yield Row("product", f"{name}, fp8 by row", partial(fp8_product, bench, *shape))
    yield Row("product", "feed-forward in, warm", partial(warm_product, bench, *shapes["feed-forward in"]))
    yield Row("copy", "copy in memory", partial(copy, bench))


def product_shapes(tokens: int, width: int) -> dict[str, tuple[int, int, int]]:
    """The linear layers of a block over the `tokens` video tokens of all rows, as (m, k, n)."""
    inner = 4 * width * 2 // 3
    return {
        "attention projection": (tokens, width, width),
        "attention projections as one": (tokens, width, 3 * width),
        "feed-forward in": (tokens, width, 2 * inner),
        "feed-forward out": (tokens, inner, width),
    }


def bf16_product(bench: Bench, m: int, k: int, n: int, warm_up: int = 2) -> Values:
    """[m, k] times [k, n], as a linear layer stores it."""
    left = _random(bench, m, k)
    right = _random(bench, n, k)
    ms = milliseconds(bench.device, lambda: F.linear(left, right), RUNS, warm_up)
    bench.best_product = max(bench.best_product, tflops(2 * m * k * n, ms))
    return {"shape": f"{m}x{k}x{n}", "tflops": rounded(tflops(2 * m * k * n, ms))}


def fp8_product(bench: Bench, m: int, k: int, n: int) -> Values:
    """The same in e4m3 with a scale for each row of both sides; casting and scaling are not in it."""
    if not bench.on_cuda:
        raise NotHereError("needs CUDA")
    left, right = (_random(bench, *shape).to(torch.float8_e4m3fn) for shape in ((m, k), (n, k)))
    scales = torch.ones(m, 1, device=bench.device), torch.ones(1, n, device=bench.device)

    def multiply() -> Tensor:
        return torch._scaled_mm(left, right.t(), *scales, out_dtype=DTYPE, use_fast_accum=True)

    ms = milliseconds(bench.device, multiply, RUNS)
    return {"shape": f"{m}x{k}x{n}", "tflops": rounded(tflops(2 * m * k * n, ms))}


def warm_product(bench: Bench, m: int, k: int, n: int) -> Values:
    """After seconds of products, when clocks have fallen to what power and heat allow."""
    left = _random(bench, m, k)
    right = _random(bench, n, k)
    end = time.perf_counter() + bench.sizes.load_s
    while time.perf_counter() < end:
        for _ in range(RUNS):
            F.linear(left, right)
        synchronize(bench.device)
    state = nvidia_smi("clocks.sm,power.draw,temperature.gpu") if bench.on_cuda else None
    return bf16_product(bench, m, k, n, warm_up=0) | {"state": state}


def copy(bench: Bench) -> Values:
    """Bytes read plus bytes written, a second."""
    source = torch.empty(bench.sizes.copy_bytes, device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    ms = milliseconds(bench.device, lambda: target.copy_(source), RUNS)
    return {"gb_per_s": rounded(2 * source.numel() / ms / 1e6)}


def attention(bench: Bench) -> Rows:
    """Each kernel for one row of the long video: its rate, its error, and what a new length costs it."""
    video = bench.tokens(bench.sizes.long_frames)
    for tokens in (video + length for length in bench.sizes.lengths):
        shape = 1, tokens, bench.sizes.heads, bench.sizes.head_dim
        qkv = [_random(bench, *shape).transpose(1, 2) for _ in range(3)]
        for name, backend in KERNELS.items():
            attend = partial(_attend_by, backend)
            yield Row("attention", f"{name}, {tokens} tokens", partial(_attention, bench, qkv, attend, backend))
        yield Row("attention", f"sage, {tokens} tokens", partial(_sage, bench, qkv))
        yield Row("attention", f"ours, {tokens} tokens", partial(_attention, bench, qkv, _attend_full))


def fp8_attention(bench: Bench) -> Rows:
    """The sampler's attention in 8 bits for one row of the long video, beside what torch chooses."""
    tokens = bench.tokens(bench.sizes.long_frames) + bench.sizes.prompt_length
    shape = 1, tokens, bench.sizes.heads, bench.sizes.head_dim
    qkv = [_random(bench, *shape).transpose(1, 2) for _ in range(3)]
    yield Row("attention", "fp8", partial(_attention, bench, qkv, _attend_fp8))
    yield Row("attention", "fp8, what is rounded alone", partial(_attention, bench, qkv, _rounded))
    yield Row("attention", "fp8, a token less for the first time", partial(_first_of_length, bench, qkv))
    yield Row(
        "attention", f"default, {tokens} tokens, again", partial(_attention, bench, qkv, partial(_attend_by, None))
    )


def _attend_by(backend: SDPBackend | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)


def _attention(bench: Bench, qkv: list[Tensor], attend: Attend, backend: SDPBackend | None = None) -> Values:
    """Error against fp32 at a few of the queries. The kernels' names say which one the default is."""
    if backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION) and not bench.on_cuda:
        raise NotHereError("needs CUDA")
    query, key, value = qkv
    _, heads, tokens, dim = query.shape
    first = first_ms(bench.device, lambda: attend(*qkv))
    ms = milliseconds(bench.device, lambda: attend(*qkv), warm_up=0)
    picked = torch.randint(0, tokens, (PICKED,), device=bench.device)
    scores = query[:, :, picked].float() @ key.float().transpose(2, 3) / dim**0.5
    wanted = scores.softmax(-1) @ value.float()
    return {
        **bench.rate(4 * heads * dim * tokens**2, ms),
        "first_ms": rounded(first),
        "error": relative_error(attend(*qkv)[:, :, picked], wanted),
        "kernels": [name[:120] for name, _, _ in kernels(bench.device, lambda: attend(*qkv))[:3]],
    }


def _sage(bench: Bench, qkv: list[Tensor]) -> Values:
    """SageAttention's 8-bit kernel, where it is installed."""
    from sageattention import sageattn

    if not bench.on_cuda:
        raise NotHereError("needs CUDA")
    return _attention(bench, qkv, sageattn)


def _attend_full(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend_full(*(part[0].transpose(0, 1) for part in (query, key, value))).transpose(0, 1)[None]


def _attend_fp8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend_fp8(*(part[0].transpose(0, 1) for part in (query, key, value))).transpose(0, 1)[None]


def _rounded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The rounding without the kernel's own: the difference is what its weights and its result lose."""
    parts = round_to_fp8(*(part[0].transpose(0, 1) for part in (query, key, value)))
    query, key, value = (part.transpose(0, 1)[None] for part in parts)
    return F.scaled_dot_product_attention(query, key, value)


def _first_of_length(bench: Bench, qkv: list[Tensor]) -> Values:
    """What a new number of tokens costs."""
    parts = [part[:, :, :-1] for part in qkv]
    return {"first_ms": rounded(first_ms(bench.device, lambda: _attend_fp8(*parts)))}


def _random(bench: Bench, *shape: int) -> Tensor:
    return torch.randn(*shape, device=bench.device, dtype=DTYPE)
