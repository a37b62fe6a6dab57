"""The video decoder: its convolutions alone, our decoding frame by frame, and the stock one with tiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import full_size as fs
from benchmarks.common.flops import counted_flops
from benchmarks.gpu_parts.bench import DTYPE, Bench, NotHereError, Row, Rows, Values
from benchmarks.gpu_parts.measuring import by_kind, milliseconds, relative_error, rounded, tflops, timed
from deployments.mochi.decoder_layers import norm_silu
from deployments.mochi.streaming_decode import StreamingDecoder, fastest_norm

KERNEL = 3
GROUPS = 32
FEW_FRAMES = 4
LAYOUTS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def convolutions(bench: Bench) -> Rows:
    """Each kind that the decoder is made of, in both layouts, by cuDNN's guess and by its trial."""
    for channels, frames, height, width in bench.sizes.convolutions:
        shape = channels, frames, height, width
        name = f"{channels} channels, {frames}x{height}x{width}"
        yield Row("convolution", name, partial(_convolution, bench, shape))


def _convolution(bench: Bench, shape: tuple[int, int, int, int]) -> Values:
    """TFLOP/s; shape: of the inputs, padding included."""
    channels, *sides = shape
    layer = torch.nn.Conv3d(channels, channels, KERNEL, device=bench.device, dtype=DTYPE)
    inputs = torch.randn(1, *shape, device=bench.device, dtype=DTYPE)
    frames, height, width = (side - KERNEL + 1 for side in sides)
    operations = 2 * KERNEL**3 * channels**2 * frames * height * width
    found: Values = {}
    for layout, memory_format in LAYOUTS.items():
        layer.to(memory_format=memory_format)  # type: ignore[call-overload]
        laid_out = inputs.contiguous(memory_format=memory_format)
        for way, tried in (("", False), ("_tried", True)):
            with _cudnn_trials(tried):
                ms = milliseconds(bench.device, partial(layer, laid_out), warm_up=2)
            found[f"{layout}{way}"] = rounded(tflops(operations, ms))
    return found


@contextmanager
def _cudnn_trials(tried: bool) -> Iterator[None]:
    """Whether cuDNN tries its algorithms for each new shape and keeps the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tried
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def our_decoder(bench: Bench) -> Rows:
    """The long video by the frame: whether it is right, the first frame, all of it, its kernels; then with torch's own
    operators in place of our kernels, and in the other layout."""
    vae = _vae(bench)
    latents = _latents(bench, bench.sizes.long_frames)
    some = latents[:, :FEW_FRAMES]
    corner = latents[:, :3, :8, :8]
    wanted = vae.decode(corner[None], return_dict=False)[0][0]
    decoder = StreamingDecoder(vae)
    yield Row("change", "decoded by the frame", partial(_decoding_error, decoder, corner, wanted))
    yield _decoding("ours", bench, latents, partial(drain, decoder, latents))
    yield _decoding("ours, to the first frame", bench, latents, partial(_first_piece, decoder, latents), counted=False)
    yield Row("kernels", "our decoder", partial(by_kind, bench.device, partial(drain, decoder, some)))
    plain = StreamingDecoder(vae, norm_silu=norm_silu)
    yield Row("change", "decoded by torch's operators", partial(_decoding_error, plain, corner, wanted))
    yield _decoding("ours, torch's operators", bench, latents, partial(drain, plain, latents))
    yield Row("kernels", "our decoder, torch's operators", partial(by_kind, bench.device, partial(drain, plain, some)))
    first = StreamingDecoder(vae, memory_format=torch.contiguous_format)
    yield _decoding("ours, channels first", bench, latents, partial(drain, first, latents))


def norms(bench: Bench) -> Rows:
    """Our kernels for norm and activation, against torch's operators in fp64, at the sizes of the decoder."""
    for channels, _, height, width in bench.sizes.convolutions:
        shape = 3, height - 2, width - 2, channels
        for dtype in (torch.float32, DTYPE):
            name = f"{channels} channels, {'x'.join(map(str, shape[:3]))}, {str(dtype).removeprefix('torch.')}"
            yield Row("norm and activation", name, partial(_norm, bench, shape, dtype))


def _norm(bench: Bench, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Values:
    """GB/s: of what a norm has to read twice and write once."""
    if not bench.on_cuda:
        raise NotHereError("needs CUDA")
    frames, height, width, channels = shape
    values = (2 * torch.randn(shape, device=bench.device) + 3).to(dtype).permute(0, 3, 1, 2)
    out = torch.empty(frames, height + 2, width + 2, channels, dtype=dtype, device=bench.device)
    inner = out.permute(0, 3, 1, 2)[..., 1:-1, 1:-1]
    weight, bias = (torch.randn(channels, device=bench.device, dtype=dtype) for _ in range(2))
    run = partial(fastest_norm(bench.device, torch.channels_last_3d), values, weight, bias, GROUPS, 1e-5, inner)
    ms = milliseconds(bench.device, run, runs=10, warm_up=2)
    wanted = F.silu(F.group_norm(values.double(), GROUPS, weight.double(), bias.double(), 1e-5))
    return {
        "gb_per_s": rounded(3 * values.nbytes / ms / 1e6),
        "ms": rounded(ms),
        "error": relative_error(inner, wanted),
    }


def stock_decoder(bench: Bench) -> Rows:
    """Half the length in tiles, for at once it may not fit, and ours beside it."""
    vae = _vae(bench)
    latents = _latents(bench, bench.sizes.short_frames)
    vae.enable_tiling()
    stock = partial(vae.decode, latents[None], return_dict=False)
    yield _decoding("stock, in tiles", bench, latents, stock)
    vae.disable_tiling()
    decoder = StreamingDecoder(vae)
    yield _decoding("ours", bench, latents, lambda: drain(decoder, latents))


def _vae(bench: Bench) -> Any:
    return fs.random_vae(bench.device, DTYPE, **bench.sizes.vae)


def _latents(bench: Bench, frames: int) -> Tensor:
    return torch.randn(bench.spec(frames).clip.latents, device=bench.device, dtype=DTYPE)


def _first_piece(decoder: StreamingDecoder, latents: Tensor) -> None:
    next(decoder.decode(latents))


def drain(decoder: StreamingDecoder, latents: Tensor) -> None:
    for _ in decoder.decode(latents):
        pass


def _decoding_error(decoder: StreamingDecoder, latents: Tensor, wanted: Tensor) -> Values:
    return {"error": relative_error(torch.cat(list(decoder.decode(latents)), dim=1), wanted)}


def _decoding(name: str, bench: Bench, latents: Tensor, work: Any, counted: bool = True) -> Row:
    """The rate counts a one-shot decode, so work done twice by tiles does not raise it."""

    def measure() -> Values:
        ms, figures = timed(bench.device, work, runs=1)
        if not counted:
            return figures
        decoder = fs.meta_vae(**bench.sizes.vae).decoder
        operations = counted_flops(decoder, torch.empty(1, *latents.shape, device="meta"))
        return figures | bench.rate(operations, ms)

    frames = 6 * (latents.shape[1] - 1) + 1
    return Row("decoding", f"{name}, {frames} frames", measure)
