"""Mochi at full size on a GPU: our step and our decoder beside the stock pipeline's, against the device's ceilings.

    python benchmarks/gpu.py --quick
    python benchmarks/gpu.py --frames 85 163 --compile --out benchmarks/results/h100.json

The weights are random, built on the device from a seed: time and memory need no trained ones. Meant for a GPU with
80 GB; what does not fit says so in its row. Without CUDA it says so and stops. Prints tables and, last, one line of
JSON.
"""

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import full_size as fs
from benchmarks.ceilings import measure_ceilings, milliseconds, tflops
from benchmarks.flops import counted_flops, forward_flops, stock_step_flops, video_tokens
from benchmarks.machine import describe_machine, publish
from deployments.denoise import latent_shape
from deployments.messages import VideoSpec
from deployments.mochi_block import run_block
from deployments.mochi_model import use_host_lengths
from deployments.streaming_decode import StreamingDecoder

WIDTH, HEIGHT = 848, 480
CUDA = torch.device("cuda")
DTYPE = torch.bfloat16
LENGTHS = [fs.NEGATIVE_LENGTH, fs.PROMPT_LENGTH]
COLUMNS = {
    "seconds": "s",
    "seconds_per_sample": "s/sample",
    "tflops": "TFLOP/s",
    "share_of_ceiling": "of ceiling",
    "peak_gb": "peak GB",
    "syncs": "syncs",
}

Row = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is false, so nothing was measured")
        return
    console = Console(width=None if sys.stdout.isatty() else 110)
    result: dict[str, Any] = {"benchmark": "gpu", "machine": describe_machine(CUDA), "clips": []}
    console.print(json.dumps(result["machine"]))
    for frames in arguments.frames:
        result["clips"].append(measure_clip(console, frames, arguments))
    publish(result, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", help="6k + 1 each; default 85 163, with --quick 85")
    parser.add_argument("--steps", type=int, help="steps measured of each kind; default 5, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="a few minutes: one length, fewer steps")
    parser.add_argument("--compile", action="store_true", help="also our step with its blocks compiled")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    arguments.frames = arguments.frames or ([85] if arguments.quick else [85, 163])
    arguments.steps = arguments.steps or (3 if arguments.quick else 5)
    if any(frames % 6 != 1 for frames in arguments.frames):
        parser.error(f"--frames is {arguments.frames}; allowed is 6k + 1, for example 85 or 163")
    return arguments


def measure_clip(console: Console, frames: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ceilings, steps and decoding of one length; the device is empty again afterwards."""
    spec = fs.clip_spec(WIDTH, HEIGHT, frames, steps=64)
    with freed():
        tokens = video_tokens({"patch_size": 2}, latent_shape(spec))
        ceilings = measure_ceilings(tokens, heads=24, dim=128)
    ceiling = max(ceilings["matmul_tflops"].values())
    console.print(ceilings_table(ceilings, frames))
    with freed():
        steps = measure_steps(spec, arguments.steps, ceiling, arguments.compile)
    console.print(rows_table(f"One guided step, {WIDTH}x{HEIGHT}x{frames}", steps))
    with freed():
        decoding = measure_decoding(spec, ceiling)
    console.print(rows_table(f"Decoding, {WIDTH}x{HEIGHT}x{frames}", decoding))
    return {"frames": frames, "ceilings": ceilings, "steps": steps, "decoding": decoding}


@contextmanager
def freed() -> Iterator[None]:
    """Give the device's memory back at the end of a part, whose objects must all be local to it."""
    try:
        yield
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def measure_steps(spec: VideoSpec, runs: int, ceiling: float, compiled: bool) -> list[Row]:
    """Every way to do a step, one row each. Shares are of `ceiling`, TFLOP/s."""
    transformer = fs.random_transformer(CUDA, DTYPE)
    config, shape = transformer.config, latent_shape(spec)
    prompt = fs.random_prompt(config.text_embed_dim, fs.PROMPT_LENGTH, seed=1)
    negative = fs.random_prompt(config.text_embed_dim, fs.NEGATIVE_LENGTH, seed=2)
    with torch.no_grad():
        row = fs.our_row(transformer, spec, prompt, negative)
    ours = forward_flops(config, shape, LENGTHS, max(LENGTHS)).total
    stock = stock_step_flops(config, shape, LENGTHS, fs.TEXT_TOKENS).total

    def measured(name: str, step: fs.Step, operations: int, samples: int = 1) -> Row:
        return measure_step(name, step, operations, samples, runs, ceiling)

    stock_step = fs.stock_step(transformer, row, prompt, negative)
    rows = [measured("stock step", stock_step, stock)]
    with freed():
        rows.append(measure_pipeline(transformer, spec, prompt, negative, runs, stock, ceiling))
    with host_lengths(transformer, LENGTHS):
        rows.append(measured("stock step, lengths known on the host", stock_step, stock))
    rows += [
        measured("of which constant for a request", fs.step_constants(transformer, spec, prompt, negative), 0),
        measured("our step", fs.our_step(transformer, [row]), ours),
        measured("our step, 2 samples", fs.our_step(transformer, [row, row]), 2 * ours, samples=2),
    ]
    if compiled:
        block = torch.compile(run_block, fullgraph=True)
        rows.append(measured("our step, compiled", fs.our_step(transformer, [row], block), ours))
    return rows


@contextmanager
def host_lengths(transformer: Any, lengths: list[int]) -> Iterator[None]:
    """diffusers' own forward with `HostLengthAttention` in its blocks, which are told `lengths` for the mask."""

    def tell(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"encoder_attention_mask": lengths}

    blocks = transformer.transformer_blocks
    stock = [block.attn1.processor for block in blocks]
    hooks = [block.register_forward_pre_hook(tell, with_kwargs=True) for block in blocks]
    use_host_lengths(transformer)
    try:
        yield
    finally:
        for block, processor, hook in zip(blocks, stock, hooks, strict=True):
            block.attn1.processor = processor
            hook.remove()


def measure_step(name: str, step: fs.Step, operations: int, samples: int, runs: int, ceiling: float) -> Row:
    """Time, memory and syncs of a step of `samples` samples; what does not fit says so in place of figures."""
    try:
        torch.cuda.reset_peak_memory_stats()
        taken = milliseconds(step, runs, warm_up=1)
        peak = torch.cuda.max_memory_allocated()
        return {
            "name": name,
            **step_figures(taken, operations, samples, ceiling),
            "peak_gb": round(peak / 1e9, 2),
            "syncs": count_syncs(step),
        }
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"name": name, "note": "out of memory"}


def step_figures(taken_ms: list[float], operations: int, samples: int, ceiling: float) -> Row:
    """Median seconds, seconds a sample, TFLOP/s and its share of `ceiling`; no rate for what counts no operations."""
    median = statistics.median(taken_ms)
    seconds = {"seconds": round(median / 1e3, 4), "seconds_per_sample": round(median / 1e3 / samples, 4)}
    if not operations:
        return seconds
    rate = tflops(operations, median)
    return seconds | {"tflops": round(rate, 1), "share_of_ceiling": round(rate / ceiling, 3)}


def count_syncs(step: Callable[[], object]) -> int:
    """How often a step makes the host wait for the device, by torch's own warnings."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def measure_pipeline(
    transformer: Any,
    spec: VideoSpec,
    prompt: fs.Prompt,
    negative: fs.Prompt,
    runs: int,
    operations: int,
    ceiling: float,
) -> Row:
    """`MochiPipeline` itself for a few steps, by the wall clock: what the device waits for counts."""
    name = "MochiPipeline, a step"
    pipeline = fs.stock_pipeline(transformer, fs.random_vae(CUDA, DTYPE))
    steps = max(2, runs)
    clip = fs.clip_spec(spec.width, spec.height, spec.num_frames, steps)
    try:
        fs.run_pipeline(pipeline, fs.clip_spec(spec.width, spec.height, spec.num_frames, 2), prompt, negative)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        fs.run_pipeline(pipeline, clip, prompt, negative)
        torch.cuda.synchronize()
        taken = (time.perf_counter() - start) * 1e3 / steps
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"name": name, "note": "out of memory"}
    peak = torch.cuda.max_memory_allocated()
    return {"name": name, **step_figures([taken], operations, 1, ceiling), "peak_gb": round(peak / 1e9, 2)}


def measure_decoding(spec: VideoSpec, ceiling: float) -> list[Row]:
    """The stock VAE with tiling (one-shot needs some 80 GB at 163 frames), then ours frame by frame."""
    latents = torch.randn(latent_shape(spec), device=CUDA, dtype=DTYPE)
    operations = counted_flops(fs.meta_vae().decoder, torch.empty(1, *latent_shape(spec), device="meta"))
    vae = fs.random_vae(CUDA, DTYPE)
    vae.enable_tiling()

    @torch.no_grad()
    def stock() -> Any:
        return vae.decode(latents[None], return_dict=False)[0]

    rows = [measure_step("stock VAE, tiled", stock, operations, 1, 2, ceiling)]
    vae.disable_tiling()
    decoder = StreamingDecoder(vae)

    def ours() -> None:
        for _ in decoder.decode(latents):
            pass

    def first() -> None:
        next(decoder.decode(latents))

    rows.append(measure_step("ours, frame by frame", ours, operations, 1, 2, ceiling))
    rows.append(measure_step("ours, until the first frame", first, 0, 1, 2, ceiling))
    return rows


def ceilings_table(ceilings: dict[str, Any], frames: int) -> Table:
    table = Table("ceiling", "measured", title=f"The device alone, bf16, at the shapes of {frames} frames")
    for name, rate in ceilings["matmul_tflops"].items():
        table.add_row(f"matmul, {name}", f"{rate:.0f} TFLOP/s")
    for name, rate in ceilings["attention_tflops"].items():
        table.add_row(f"attention, {name}", rate if isinstance(rate, str) else f"{rate:.0f} TFLOP/s")
    table.add_row("memory copy", f"{ceilings['copy_gb_per_s']:.0f} GB/s")
    return table


def rows_table(title: str, rows: list[Row]) -> Table:
    """A line a row; what was not measured stays empty."""
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading)
    for row in rows:
        name = f"{row['name']} ({row['note']})" if "note" in row else row["name"]
        table.add_row(name, *(str(row.get(key, "")) for key in COLUMNS))
    return table


if __name__ == "__main__":
    main()
