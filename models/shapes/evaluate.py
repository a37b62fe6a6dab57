"""How good the included model is: its clips, made by the server's own code and read back from their mp4 files.

    python -m models.shapes.evaluate score      # prompts never trained on, pairs, trained ones; reader and VAE too
    python -m models.shapes.evaluate sweep      # quality against steps and against guidance
    python -m models.shapes.evaluate compare    # a draft and the enhanced video of the same prompt and seed
    python -m models.shapes.evaluate sizes      # other sizes and lengths
    python -m models.shapes.evaluate figure     # pictures of the results, and a sheet of clips
    python -m models.shapes.evaluate card       # the figures of the model card
    python -m models.shapes.evaluate            # all of these

`card --second FOLDER` tells also of a model that was trained anew and scored with `score --model FOLDER`.

Each of the first four puts its results under its own name into one JSON file and prints them.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from deployments.messages import VideoSpec
from models.shapes.evaluation.arguments import CLIPS, PROFILE, parse
from models.shapes.evaluation.bench import Bench, say
from models.shapes.evaluation.card import split_card, write_card
from models.shapes.evaluation.generating import Generator, vae_round_trip
from models.shapes.evaluation.results import Json, keep, needed, provenance
from models.shapes.evaluation.scoring import Case, brief, draw_cases, paired, summarise, table
from models.shapes.evaluation.second_training import HEADLINE, second_training
from models.shapes.evaluation.statistics import mean
from models.shapes.reading.reading import psnr
from serve_app.config import load_settings

CARD = "README.md"
# Prompts and seeds of its own for each: the settings are chosen by `sweep`, and what was chosen is measured on others.
SEEDS = {"score": 0, "compare": 1, "sweep": 2, "sizes": 3}
# width, height, frames
OTHER_SIZES = ((64, 64, 25), (80, 128, 37), (128, 96, 37), (96, 96, 25), (96, 96, 49))
TIMED_CLIPS = 7
SHEET_CLIPS = (6, 2)
# The results that each output is made from.
NEEDED = {"figure": ("sweep",), "card": ("score", "compare", "sizes")}


def score(bench: Bench, options: argparse.Namespace) -> Json:
    """The headline, scenes never trained on, and what the readings of them are worth.

    Of a figure held out, colour, shape and direction never met in training; of a pair held out, those of at least
    one of the two.
    """
    asked = {
        HEADLINE: _cases("score", options),
        "held out, two figures": draw_cases(options.pairs, "held out", pairs=True, seed=SEEDS["score"]),
        "trained, one figure": draw_cases(options.trained, "train", pairs=False, seed=SEEDS["score"]),
    }
    sets = {name: cases for name, cases in asked.items() if cases}
    made = {name: summarise(bench.results(name, cases)) for name, cases in sets.items()}
    drawn = {name: summarise(bench.drawn_results(name, cases)) for name, cases in sets.items()}
    say("\nThe model's clips\n" + table(made))
    say("\nDrawn clips of the same scenes: what the reader gets right\n" + table(drawn))
    held_out = [case for name, cases in sets.items() if name.startswith("held out") for case in cases]
    vae = _vae_psnr(bench, held_out[:: max(1, len(held_out) // options.vae_clips)])
    say(f"\nVAE: {vae['psnr_db']['mean']:.2f} dB in the mean, 5th percentile {vae['psnr_db']['p5']:.2f} dB")
    return {"made": made, "drawn": drawn, "vae": vae}


def _cases(name: str, options: argparse.Namespace) -> list[Case]:
    """The held-out scenes of one figure of an experiment."""
    count = CLIPS[name] if options.clips is None else options.clips
    return draw_cases(count, "held out", pairs=False, seed=SEEDS[name])


def _vae_psnr(bench: Bench, cases: Sequence[Case]) -> Json:
    clips = [bench.drawn(case) for case in cases]
    values = [psnr(again, clip) for again, clip in zip(vae_round_trip(bench.folder, clips), clips, strict=True)]
    return {"clips": len(clips), "psnr_db": mean(values)}


def sweep(bench: Bench, options: argparse.Namespace) -> Json:
    """The same prompts and seeds with other steps, and with other guidance."""
    cases = _cases("sweep", options)
    spec = bench.spec
    curves = {
        "steps": [(steps, spec.guidance_scale) for steps in options.sweep_steps],
        "guidance": [(spec.num_inference_steps, scale) for scale in options.sweep_guidance],
    }
    # The curves cross at the default settings, which are made once.
    points = {}
    for steps, scale in dict.fromkeys(point for curve in curves.values() for point in curve):
        at = replace(spec, num_inference_steps=steps, guidance_scale=scale)
        made = summarise(bench.results(f"{steps} steps, guidance {scale:g}", cases, at))
        points[steps, scale] = {"steps": steps, "guidance": scale, **brief(made)}
    found: Json = {name: [points[point] for point in curve] for name, curve in curves.items()}
    for name, curve in found.items():
        say("\n" + "\n".join(_line(f"{name} {point[name]:g}", point) for point in curve))
    steps_used, scales_used = zip(*points, strict=True)
    return found | {
        "made_with": {"num_inference_steps": sorted({*steps_used}), "guidance_scale": sorted({*scales_used})}
    }


def _line(name: str, point: Json) -> str:
    shares = ", ".join(f"{key.replace('_', ' ')} {point[key]['share']:.1%}" for key in ("all_three", "everything"))
    return f"{name:>22}: {shares}, redraw PSNR {point['redraw_psnr_db']['mean']:.2f} dB"


def compare(bench: Bench, options: argparse.Namespace) -> Json:
    """Draft and enhanced from the same prompt and seed: what more steps are worth, and what they cost."""
    model = load_settings(PROFILE).model
    draft_steps = model.num_inference_steps.default
    enhanced_steps = 2 * draft_steps if model.enhanced_steps is None else model.enhanced_steps
    specs = {
        "draft": replace(bench.spec, num_inference_steps=draft_steps),
        "enhanced": replace(bench.spec, num_inference_steps=enhanced_steps),
    }
    cases = _cases("compare", options)
    results = {name: bench.results(name, cases, spec) for name, spec in specs.items()}
    seconds = _sampling_seconds(bench.generator, specs, cases)
    found: Json = {
        name: {"steps": spec.num_inference_steps, "sampling_s": seconds[name], **brief(summarise(results[name]))}
        for name, spec in specs.items()
    }
    found["paired"] = paired(results["draft"], results["enhanced"])
    for name in specs:
        say(_line(name, found[name]) + f", {seconds[name]:.2f} s of sampling")
    gain = found["paired"]["redraw_psnr_gain_db"]
    say(f"enhanced is better by {gain['mean']:.2f} dB ({gain['low']:.2f} to {gain['high']:.2f})")
    return found | {"made_with": {"num_inference_steps": [draft_steps, enhanced_steps]}}


def _sampling_seconds(generator: Generator, specs: dict[str, VideoSpec], cases: Sequence[Case]) -> dict[str, float]:
    """The median for one clip alone; by turns, so that whatever else the machine does hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in specs}
    for case in cases[:TIMED_CLIPS]:
        for name, spec in specs.items():
            taken[name].append(generator.sampling_seconds(replace(spec, prompt=case.prompt, seed=case.seed)))
    return {name: round(statistics.median(each), 3) for name, each in taken.items()}


def sizes(bench: Bench, options: argparse.Namespace) -> Json:
    """Sizes and lengths beside the one that the model is made for."""
    cases = _cases("sizes", options)
    found = {}
    for width, height, num_frames in OTHER_SIZES:
        name = f"{width}x{height}, {num_frames} frames"
        spec = replace(bench.spec, width=width, height=height, num_frames=num_frames)
        found[name] = summarise(bench.results(name, cases, spec))
    say("\n" + table(found))
    widths, heights, lengths = (sorted({*each}) for each in zip(*OTHER_SIZES, strict=True))
    return {**found, "made_with": {"width": widths, "height": heights, "num_frames": lengths}}


def figure(bench: Bench, options: argparse.Namespace) -> None:
    """Draw `quality.png` from the sweep in the file, and `sheet.png` from clips of the first prompts of `score`."""
    from models.shapes.evaluation.charts import draw_quality, draw_sheet

    ones, pairs = SHEET_CLIPS
    folder = options.out.parent
    seed = SEEDS["score"]
    draw_quality(needed(options.out, NEEDED["figure"], bench.folder)["sweep"], folder / "quality.png")
    cases = draw_cases(ones, "held out", False, seed) + draw_cases(pairs, "held out", True, seed)
    draw_sheet([case.prompt for case in cases], list(bench.clips(cases))).save(folder / "sheet.png", optimize=True)
    say(f"written to {folder}: quality.png, sheet.png")


def card(options: argparse.Namespace) -> None:
    """Write the file's figures into the model card beside it."""
    path = _card_path(options.out)
    if options.second:
        keep(options.out, "second training", second_training(options.second))
    write_card(path, needed(options.out, NEEDED["card"], options.model))
    say(f"written to {path}")


def _card_path(out: Path) -> Path:
    return out.parent / CARD


EXPERIMENTS: dict[str, Callable[[Bench, argparse.Namespace], Json]] = {
    "score": score,
    "sweep": sweep,
    "compare": compare,
    "sizes": sizes,
}


def main(argv: Sequence[str] | None = None, load: Callable[[Path, int], Generator] = Generator) -> None:
    """Do what the command line says. load: loads the model of a folder, that reads so many tokens."""
    options = parse(__doc__ or "", argv)
    torch.set_num_threads(options.threads)
    _refuse_early(options)
    if set(options.what) != {"card"}:
        bench = _bench(options, load)
        for name in options.what:
            if name in EXPERIMENTS:
                _experiment(name, bench, options)
        if "figure" in options.what:
            figure(bench, options)
    if "card" in options.what:
        card(options)


def _refuse_early(options: argparse.Namespace) -> None:
    """What an output lacks that no experiment of this run makes is said before hours of work."""
    if "card" in options.what:
        split_card(_card_path(options.out))
        if options.second:
            second_training(options.second)
    for output, names in NEEDED.items():
        if output in options.what:
            needed(options.out, [name for name in names if name not in options.what], options.model)


def _bench(options: argparse.Namespace, load: Callable[[Path, int], Generator]) -> Bench:
    model = load_settings(PROFILE).model
    spec = VideoSpec(
        prompt="",
        negative_prompt="",
        width=options.width,
        height=options.height,
        num_frames=options.num_frames,
        fps=model.fps.default,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        seed=0,
    )
    return Bench(options.model, load(options.model, model.max_sequence_length), spec, options.batch)


def _experiment(name: str, bench: Bench, options: argparse.Namespace) -> None:
    begun = time.monotonic()
    found = EXPERIMENTS[name](bench, options)
    made_with = provenance(bench.folder, bench.spec) | found.get("made_with", {})
    made_with["minutes"] = round((time.monotonic() - begun) / 60, 1)
    keep(options.out, name, found | {"made_with": made_with})
    say(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
