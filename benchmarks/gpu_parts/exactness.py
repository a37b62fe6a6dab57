"""Whether the device computes what the CPU does: the included model whole, and one block of Mochi 1's width."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import full_size as fs
from benchmarks.gpu_parts.bench import DTYPE, Bench, Row, Rows, Values
from benchmarks.gpu_parts.measuring import milliseconds, relative_error, rounded
from deployments.mochi.block import AttendedRow, run_block
from deployments.mochi.denoise import denoise_step
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise, to_uint8
from deployments.mochi.weights.loading import load_transformer, load_vae

MODEL = Path(__file__).resolve().parents[2] / "models" / "shapes"
WORDS = 9
MODEL_TEXT_TOKENS = 64

RunAny = Callable[[torch.dtype], Tensor]


def included_model(bench: Bench) -> Rows:
    """A video of the included model in fp32, from noise to pixels, on the device and on the CPU."""
    yield Row("included model", "device against CPU", partial(_video_errors, bench))


def _video_errors(bench: Bench) -> Values:
    latents, pixels = _video(bench, bench.device)
    wanted, wanted_pixels = _video(bench, torch.device("cpu"))
    apart = (pixels.int() - wanted_pixels.int()).abs()
    return {
        "latents_error": relative_error(latents, wanted),
        "pixels_apart": rounded(float((apart > 1).double().mean())),
        "furthest_apart": int(apart.max()),
    }


def _video(bench: Bench, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents [12, T, h, w] fp32 and RGB bytes [frames, H, W, 3], both on the CPU."""
    transformer: Any = load_transformer(MODEL, "float32", device)
    vae: Any = load_vae(MODEL, "float32", device)
    dim = transformer.config.text_embed_dim
    prompt = fs.random_prompt(dim, WORDS, MODEL_TEXT_TOKENS, seed=1)
    negative = fs.random_prompt(dim, fs.NEGATIVE_LENGTH, MODEL_TEXT_TOKENS, seed=2)
    sample = fs.our_sample(transformer, bench.sizes.included, prompt, negative)
    while not sample.done:
        sample = denoise_step(transformer, [sample])[0]
    pieces = StreamingDecoder(vae).decode(denormalise(vae, sample.latents).to(vae.dtype))
    return sample.latents.cpu(), torch.cat([to_uint8(piece).cpu() for piece in pieces])


def block(bench: Bench) -> Rows:
    """One block over a few thousand tokens: ours and diffusers' own, against diffusers' in fp32."""
    weights = _random_block(bench)
    ways = _ways(bench, weights)
    wanted = ways["diffusers"](torch.float32)
    yield Row("block", "ours, fp32", partial(_block_error, bench, ways["ours"], torch.float32, wanted))
    weights.to(DTYPE)
    for name, way in ways.items():
        yield Row("block", f"{name}, bf16", partial(_block_error, bench, way, DTYPE, wanted))


def _random_block(bench: Bench) -> Any:
    from diffusers.models.transformers.transformer_mochi import MochiTransformerBlock

    sizes = bench.sizes
    with torch.device("meta"):
        made = MochiTransformerBlock(sizes.model_width, sizes.heads, sizes.head_dim, sizes.caption)
    return fs.filled(made.eval().requires_grad_(False), bench.device, torch.float32, seed=1)


def _ways(bench: Bench, weights: Any) -> dict[str, RunAny]:
    """The video tokens that each way of running the block gives for the same inputs, by the dtype of both."""
    sizes = bench.sizes
    device = bench.device
    tokens = bench.sizes.block_tokens
    random = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    video = random(2, tokens, sizes.model_width)
    text = random(2, sizes.text_tokens, sizes.caption)
    embedding = random(2, sizes.model_width)
    angles = random(tokens, sizes.heads, sizes.head_dim // 2)
    rope = torch.polar(torch.ones_like(angles), angles)
    lengths = sizes.lengths
    rows = [AttendedRow(length) for length in lengths]
    mask = torch.arange(sizes.text_tokens, device=device) < torch.tensor(lengths, device=device)[:, None]

    def diffusers(dtype: torch.dtype) -> Tensor:
        out: Tensor = weights(video.to(dtype), text.to(dtype), embedding.to(dtype), mask, (rope.real, rope.imag))[0]
        return out

    def ours(dtype: torch.dtype) -> Tensor:
        activated = F.silu(embedding.to(dtype))
        return run_block(weights, video.to(dtype), text.to(dtype), activated, rows, None, rope)[0]

    return {"ours": ours, "diffusers": diffusers}


def _block_error(bench: Bench, way: RunAny, dtype: torch.dtype, wanted: Tensor) -> Values:
    error = relative_error(way(dtype), wanted)
    return {"error": error, "ms": rounded(milliseconds(bench.device, lambda: way(dtype)))}
