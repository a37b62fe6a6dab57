"""Denoise steps shared by several samples, beside the stock pipeline called one prompt at a time.

    python benchmarks/step_batching.py
    python benchmarks/step_batching.py --rounds 31 --out benchmarks/results/step_batching.json

The included model on the CPU, all in one process: each round runs the stock pipeline and every batch size once, in an
order that turns from round to round. Both sides start from the same prompt embeddings (the text encoder is left out
on both) and end with latents. Prints a table of medians and, last, one line of JSON.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import full_size as fs
from benchmarks.common.machine import describe_machine, publish
from deployments.messages import VideoSpec
from deployments.mochi.denoise import Sample, denoise_step, rope_tables, start_sample
from deployments.mochi.weights.loading import load_transformer

MODEL = Path(__file__).resolve().parent.parent / "models" / "shapes"
TEXT_TOKENS = 64
TOLERANCE = 1e-4
PROMPTS = (
    "a red circle moving right",
    "a blue square",
    "a green triangle moving up",
    "a yellow circle moving left",
)

Embeds = dict[str, Tensor]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="In CPU autocast")  # diffusers asks for an fp32 autocast, a no-op
    warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")
    result = {
        "benchmark": "step_batching",
        "machine": describe_machine(torch.device("cpu")),
        **batching_section(arguments.samples, arguments.rounds),
    }
    publish(result, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


def batching_section(samples: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure, print the table, return what it says."""
    contenders = Contenders()
    contenders.check(max(samples))
    runs: dict[int, Callable[[int], object]] = {0: contenders.stock_clip}
    runs |= {n: partial(contenders.our_clips, n) for n in samples}
    section = summarise(take_turns(runs, rounds), contenders.spec(0).num_inference_steps)
    Console().print(as_table(section))
    return section


class Contenders:
    """The stock pipeline and our step on the same weights, embeddings and seeds."""

    def __init__(self) -> None:
        from diffusers import MochiPipeline
        from diffusers.utils import logging
        from transformers.utils import logging as transformers_logging

        logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self._pipeline = MochiPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        self._transformer = load_transformer(MODEL, "float32", torch.device("cpu"))
        self._embeds = [self._encode(prompt) for prompt in PROMPTS]

    def spec(self, n: int) -> VideoSpec:
        """The n-th clip: the model's default size and steps, a seed of its own."""
        return VideoSpec(PROMPTS[n % len(PROMPTS)], "", 64, 64, 25, 30, 20, 3.0, seed=n)

    def stock_clip(self, n: int) -> Tensor:
        """[12, T, h, w] of clip n by diffusers."""
        embeds = self._embeds[n % len(PROMPTS)]
        prompt = fs.Prompt(embeds["prompt_embeds"], embeds["prompt_mask"])
        negative = fs.Prompt(embeds["negative_embeds"], embeds["negative_mask"])
        return fs.run_pipeline(self._pipeline, self.spec(n), prompt, negative)

    @torch.no_grad()
    def our_clips(self, count: int, first: int) -> list[Tensor]:
        """Clips first to first + count - 1 in one batch, from embeddings to latents."""
        rope = rope_tables(self._transformer, self.spec(first).clip.latents)
        samples: list[Sample] = [
            start_sample(self._transformer, self.spec(n), self._embeds[n % len(PROMPTS)], rope)
            for n in range(first, first + count)
        ]
        while not samples[0].done:
            samples = denoise_step(self._transformer, samples)
        return [sample.latents for sample in samples]

    def check(self, count: int) -> None:
        """Both must make the same videos, or the times would compare nothing."""
        for n, ours in enumerate(self.our_clips(count, 0)):
            stock = self.stock_clip(n)
            error = float((ours - stock).norm() / stock.norm())
            if error > TOLERANCE:
                raise SystemExit(
                    f"clip {n}: our latents are {error:.1e} off the stock pipeline's, over {TOLERANCE:.0e}"
                )

    def _encode(self, prompt: str) -> Embeds:
        with torch.no_grad():
            embeds, mask, negative, negative_mask = self._pipeline.encode_prompt(
                prompt, max_sequence_length=TEXT_TOKENS
            )
        return {
            "prompt_embeds": embeds[0],
            "prompt_mask": mask[0],
            "negative_embeds": negative[0],
            "negative_mask": negative_mask[0],
        }


def take_turns(runs: Mapping[int, Callable[[int], object]], rounds: int) -> dict[int, list[float]]:
    """Seconds of each run by its key, `rounds` of each after one to warm up.

    Each round starts one further on, so that no run always follows the same other one.
    """
    seconds: dict[int, list[float]] = {key: [] for key in runs}
    keys = list(runs)
    for turn in range(rounds + 1):
        first = turn % len(keys)
        for key in keys[first:] + keys[:first]:
            start = time.perf_counter()
            runs[key](turn)
            if turn:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: dict[int, list[float]], steps: int) -> dict[str, Any]:
    """Medians. Key 0 of `seconds` is the stock pipeline, the others are samples of a batch."""
    stock = _point(1, seconds[0], seconds[0], steps)
    curve = [
        {"samples": samples} | _point(samples, taken, seconds[0], steps)
        for samples, taken in seconds.items()
        if samples
    ]
    return {"steps": steps, "rounds": len(seconds[0]), "stock": stock, "curve": curve}


def _point(samples: int, taken: list[float], stock: list[float], steps: int) -> dict[str, float]:
    median = statistics.median(taken)
    return {
        "clips_per_s": round(samples / median, 3),
        "ratio": round(samples * statistics.median(stock) / median, 3),
        "ms_per_step": round(median / steps * 1e3, 3),
        "ms_per_step_and_sample": round(median / steps / samples * 1e3, 3),
        "spread": round(spread(taken), 3),
    }


def spread(taken: list[float]) -> float:
    """Half of the runs lie within this share of the median; over 0.1 the machine did other work beside."""
    if len(taken) < 2:
        return 0.0
    lower, median, upper = statistics.quantiles(taken, n=4, method="inclusive")
    return (upper - lower) / median


def as_table(section: dict[str, Any]) -> Table:
    title = f"{section['steps']} guided steps of 64x64x25, medians of {section['rounds']} rounds"
    table = Table("samples", "clips/s", "of stock", "ms a step", "ms a step and sample", "spread", title=title)
    for point in [{"samples": "stock"} | section["stock"], *section["curve"]]:
        figures = [f"{point[key]:.2f}" for key in ("clips_per_s", "ratio", "ms_per_step", "ms_per_step_and_sample")]
        table.add_row(str(point["samples"]), *figures, f"{point['spread']:.0%}")
    return table


if __name__ == "__main__":
    main()
