"""What each quality of the included model saves and costs: time, likeness to `exact`, and what its clips show.

    python benchmarks/quality.py
    python benchmarks/quality.py --clips 100 --rows rows.jsonl --out benchmarks/results/quality_cpu.json

Each prompt (scenes that no training saw, with a seed each) is sampled alone in each quality in turn, in an order that
turns from prompt to prompt, and decoded. With --rows each prompt is written down, and a run that was ended goes on
where it was. Prints a table and, last, one line of JSON.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from deployments.messages import VideoSpec
from deployments.settings import ModelSettings
from deployments.step_rules import Quality, StepPlan
from models.shapes.evaluation.generating import Generator
from models.shapes.evaluation.scoring import Case, draw_cases, read_back
from models.shapes.reading.reading import Frames, psnr
from serve_app.config import load_settings

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ROOT / "configs" / "shapes.yaml"
SEED = 4  # of the prompts: none of `models.shapes.evaluate`
MEASURES = ("colour", "direction", "shape")
# Bars of `fast`.
MOST_TIME = 0.6
MOST_LOSS = 1.0  # points of each measure

ANY_CASE = draw_cases(1, "train", pairs=False)[0]

Row = dict[str, Any]
"""One prompt in one quality."""


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    model = load_settings(str(arguments.profile), {}).model
    rows = _read(arguments.rows)
    for made in measure(model, arguments.clips, done={row["clip"] for row in rows}):
        rows += made
        if arguments.rows is not None:
            with arguments.rows.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in made)
    section = summarise([row for row in rows if row["clip"] < arguments.clips], model)
    Console().print(as_table(section))
    publish({"benchmark": "quality", "machine": describe_machine(torch.device("cpu")), **section}, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", type=Path, default=PROFILE, help="the included model with other qualities")
    parser.add_argument("--rows", type=Path, help="keep what is measured of each prompt here, and go on from it")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


def _read(path: Path | None) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.exists() else []


def measure(model: ModelSettings, clips: int, done: set[int]) -> Iterator[list[Row]]:
    """The rows of each prompt that is not done yet, one a quality."""
    generator = Generator(ROOT / model.source, model.max_sequence_length)
    generator.sample([_spec(model, "exact", ANY_CASE)])  # what happens once is no prompt's
    for clip, case in enumerate(draw_cases(clips, "held out", pairs=False, seed=SEED)):
        if clip not in done:
            yield _of_case(generator, model, clip, case)


def _of_case(generator: Generator, model: ModelSettings, clip: int, case: Case) -> list[Row]:
    first = clip % len(model.offered)
    rows: dict[Quality, Row] = {}
    frames: dict[Quality, Frames] = {}
    for quality in model.offered[first:] + model.offered[:first]:
        spec = _spec(model, quality, case)
        wall, cpu = time.perf_counter(), time.process_time()
        (latents,) = generator.sample([spec])
        rows[quality] = {
            "clip": clip,
            "quality": quality,
            "cpu_s": round(time.process_time() - cpu, 4),
            "wall_s": round(time.perf_counter() - wall, 4),
        }
        frames[quality] = generator.decode(latents, spec.fps)
        verdict = read_back(case, frames[quality]).verdict
        rows[quality] |= {name: getattr(verdict, name) for name in MEASURES}
    for quality, row in rows.items():
        row["psnr_db"] = round(psnr(frames[quality], frames["exact"]), 3)
        row["ssim"] = round(ssim(frames[quality], frames["exact"]), 5)
    return list(rows.values())


def _spec(model: ModelSettings, quality: Quality, case: Case) -> VideoSpec:
    return VideoSpec(
        prompt=case.prompt,
        negative_prompt="",
        width=model.width.default,
        height=model.height.default,
        num_frames=model.num_frames.default,
        fps=model.fps.default,
        num_inference_steps=model.steps_of(quality),
        guidance_scale=model.guidance_of(quality),
        seed=case.seed,
        quality=quality,
        rules=model.rules_of(quality),
    )


def ssim(frames: Frames, reference: Frames) -> float:
    """Structural similarity of the brightness, the mean over all pixels and frames; 1 for the same video.

    Z. Wang et al., "Image quality assessment", IEEE Transactions on Image Processing 13 (2004): windows are Gaussian,
    11 x 11 with a standard deviation of 1.5 pixels, whole ones alone.

    Args:
        frames: [F, H, W, 3] of 0 to 255, both sides at least 11.
        reference: of the same shape.
    """
    weights = torch.tensor((0.299, 0.587, 0.114))
    one, other = (torch.from_numpy(each).float().matmul(weights)[:, None] for each in (frames, reference))
    bell = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2
    mean_one, mean_other, squares_one, squares_other, products = (
        F.conv2d(each, window) for each in (one, other, one * one, other * other, one * other)
    )
    small, smaller = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = products - mean_one * mean_other
    variances = squares_one - mean_one**2 + squares_other - mean_other**2
    likeness = (2 * mean_one * mean_other + small) / (mean_one**2 + mean_other**2 + small)
    return float((likeness * (2 * covariance + smaller) / (variances + smaller)).mean())


def summarise(rows: Sequence[Row], model: ModelSettings) -> dict[str, Any]:
    """A line for each quality, and whether `fast` keeps to its bars. rows: of the same prompts in each quality."""
    by_quality = {quality: [row for row in rows if row["quality"] == quality] for quality in model.offered}
    exact = by_quality["exact"]
    qualities = {quality: _line(of_quality, exact, model, quality) for quality, of_quality in by_quality.items()}
    section: dict[str, Any] = {"clips": len(exact), "time": "CPU seconds of sampling alone", "qualities": qualities}
    if "fast" in qualities:
        fast = qualities["fast"]
        section["bars"] = {
            "fast_time": {"is": fast["time"], "at_most": MOST_TIME, "holds": fast["time"] <= MOST_TIME},
            "fast_points_lost": {
                name: {"is": fast["points_lost"][name], "at_most": MOST_LOSS, "holds": fast["points_lost"][name] <= 1}
                for name in MEASURES
            },
        }
    return section


def _line(rows: Sequence[Row], exact: Sequence[Row], model: ModelSettings, quality: Quality) -> dict[str, Any]:
    right = {name: _percent(rows, name) for name in MEASURES}
    return {
        "steps": model.steps_of(quality),
        "plan": written_plan(_spec(model, quality, ANY_CASE).plan),
        "sampling_cpu_s": round(statistics.median(row["cpu_s"] for row in rows), 4),
        # Each beside `exact` of the same prompt, a moment apart.
        "time": round(statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in zip(rows, exact, strict=True)), 3),
        "psnr_db": round(statistics.mean(row["psnr_db"] for row in rows), 2),
        "ssim": round(statistics.mean(row["ssim"] for row in rows), 4),
        "right_percent": right,
        "points_lost": {name: round(_percent(exact, name) - right[name], 2) for name in MEASURES},
    }


def _percent(rows: Sequence[Mapping[str, Any]], measure: str) -> float:
    return round(100 * statistics.mean(bool(row[measure]) for row in rows), 2)


def written_plan(plan: StepPlan) -> str:
    """Of each step its rows, in brackets where it runs the first block alone: 2 (2) 2 1."""
    return " ".join(f"({step.rows})" if step.reuses else str(step.rows) for step in plan.steps)


def as_table(section: Mapping[str, Any]) -> Table:
    columns = ("quality", "rows of each step", "sampling", "time", "PSNR, dB", "SSIM", *(f"{m}, %" for m in MEASURES))
    table = Table(*columns, title=f"{section['clips']} prompts, each alone, against exact")
    for name, line in section["qualities"].items():
        figures = [f"{line['sampling_cpu_s']:.3f} s", f"{line['time']:.2f}", f"{line['psnr_db']:.1f}"]
        right = [f"{line['right_percent'][measure]:.0f}" for measure in MEASURES]
        table.add_row(name, line["plan"], *figures, f"{line['ssim']:.3f}", *right)
    return table


if __name__ == "__main__":
    main()
