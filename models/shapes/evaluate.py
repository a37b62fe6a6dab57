"""How good the included model is: its clips, made by the server's own code and read back from their mp4 files.

    python -m models.shapes.evaluate score      # prompts never trained on, pairs, trained ones; reader and VAE too
    python -m models.shapes.evaluate sweep      # quality against steps and against guidance
    python -m models.shapes.evaluate compare    # a draft and the enhanced video of the same prompt and seed
    python -m models.shapes.evaluate sizes      # other sizes and lengths
    python -m models.shapes.evaluate figure     # pictures of the results, and a sheet of clips
    python -m models.shapes.evaluate card       # the figures of the model card
    python -m models.shapes.evaluate            # all of these

Each of the first four puts its results under its own name into one JSON file and prints them.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deployments.messages import VideoSpec
from models.shapes.reading.card import write_card
from models.shapes.reading.generating import Generator, vae_round_trip
from models.shapes.reading.mp4 import through_mp4
from models.shapes.reading.reading import Frames, psnr
from models.shapes.reading.scoring import (
    Case,
    Result,
    brief,
    draw_cases,
    drawn_clip,
    outcomes,
    paired,
    read_back,
    summarise,
    table,
)
from models.shapes.reading.statistics import mean
from serve_app.config import load_settings

FOLDER = Path(__file__).parent
CARD = "README.md"
PROFILE = "configs/shapes.yaml"
WEIGHTS = ("transformer/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")
SWEPT_STEPS = (4, 6, 8, 12, 16, 24, 40, 64)
SWEPT_GUIDANCE = (1.0, 2.0, 3.0, 4.5, 6.0)
# width, height, frames
OTHER_SIZES = ((64, 64, 25), (80, 128, 37), (128, 96, 37), (96, 96, 25), (96, 96, 49))
TIMED_CLIPS = 7
SHEET_CLIPS = (6, 2)
_WHAT = "score, sweep, compare, sizes, figure, card; several, or none for all"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """What every experiment works with. spec: a clip's size, length, steps and guidance, of no prompt yet."""

    folder: Path
    generator: Generator
    spec: VideoSpec
    batch: int

    def results(self, name: str, cases: Sequence[Case], spec: VideoSpec | None = None) -> list[Result]:
        """Make and read a clip for each case, and say how it goes."""
        say = _Progress(name, len(cases))
        return [say.done(read_back(case, clip)) for case, clip in zip(cases, self.clips(cases, spec), strict=True)]

    def clips(self, cases: Sequence[Case], spec: VideoSpec | None = None) -> Iterator[Frames]:
        base = spec or self.spec
        return self.generator.make([replace(base, prompt=case.prompt, seed=case.seed) for case in cases], self.batch)


class _Progress:
    """A line now and then: how many clips of how many, and how they were."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._results: list[Result] = []
        self._begun = self._told = time.monotonic()

    def done(self, result: Result) -> Result:
        self._results.append(result)
        now = time.monotonic()
        if now - self._told > 10 or len(self._results) == self._total:
            self._told = now
            self._tell((now - self._begun) / len(self._results))
        return result

    def _tell(self, each: float) -> None:
        right = sum(outcomes(self._results, "all_three"))
        _say(f"{self._name}: {len(self._results)}/{self._total} clips, {right} right, {each:.1f} s a clip")


def score(bench: Bench, arguments: argparse.Namespace) -> Json:
    """The headline: scenes whose colour, shape and direction never met in training; and what the readings are worth."""
    sets = {
        "held out, one figure": draw_cases(arguments.clips or 320, "held out", pairs=False),
        "held out, two figures": draw_cases(arguments.pairs, "held out", pairs=True),
        "trained, one figure": draw_cases(arguments.trained, "train", pairs=False),
    }
    made = {name: summarise(bench.results(name, cases)) for name, cases in sets.items()}
    drawn = {name: summarise(_read_drawn(bench, name, cases)) for name, cases in sets.items()}
    _say("\nThe model's clips\n" + table(made))
    _say("\nDrawn clips of the same scenes: what the reader gets right\n" + table(drawn))
    held_out = [case for name, cases in sets.items() if name.startswith("held out") for case in cases]
    vae = _vae_psnr(bench, held_out[:: max(1, len(held_out) // arguments.vae_clips)])
    _say(f"\nVAE: {vae['psnr_db']['mean']:.2f} dB in the mean, 5th percentile {vae['psnr_db']['p5']:.2f} dB")
    return {"made": made, "drawn": drawn, "vae": vae}


def _read_drawn(bench: Bench, name: str, cases: Sequence[Case]) -> list[Result]:
    say, spec = _Progress(f"drawn: {name}", len(cases)), bench.spec
    clips = (drawn_clip(case, spec.height, spec.width, spec.num_frames) for case in cases)
    return [say.done(read_back(case, through_mp4(clip, spec.fps))) for case, clip in zip(cases, clips, strict=True)]


def _vae_psnr(bench: Bench, cases: Sequence[Case]) -> Json:
    spec = bench.spec
    clips = [drawn_clip(case, spec.height, spec.width, spec.num_frames) for case in cases]
    values = [psnr(again, clip) for again, clip in zip(vae_round_trip(bench.folder, clips), clips, strict=True)]
    return {"clips": len(clips), "psnr_db": mean(values)}


def sweep(bench: Bench, arguments: argparse.Namespace) -> Json:
    """The same prompts and seeds with other steps, and with other guidance."""
    cases = draw_cases(arguments.clips or 64, "held out", pairs=False)

    def at(spec: VideoSpec) -> Json:
        name = f"{spec.num_inference_steps} steps, guidance {spec.guidance_scale:g}"
        summary = summarise(bench.results(name, cases, spec))
        return {"steps": spec.num_inference_steps, "guidance": spec.guidance_scale, **brief(summary)}

    found: Json = {
        "steps": [at(replace(bench.spec, num_inference_steps=steps)) for steps in arguments.sweep_steps],
        "guidance": [at(replace(bench.spec, guidance_scale=scale)) for scale in arguments.sweep_guidance],
    }
    for name, points in found.items():
        _say("\n" + "\n".join(_line(f"{name} {point[name]:g}", point) for point in points))
    return found


def _line(name: str, point: Json) -> str:
    shares = ", ".join(f"{key.replace('_', ' ')} {point[key]['share']:.1%}" for key in ("all_three", "everything"))
    return f"{name:>22}: {shares}, redraw PSNR {point['redraw_psnr_db']['mean']:.2f} dB"


def compare(bench: Bench, arguments: argparse.Namespace) -> Json:
    """Draft and enhanced from the same prompt and seed: what more steps are worth, and what they cost."""
    model = load_settings(PROFILE).model
    draft_steps = model.num_inference_steps.default
    specs = {
        "draft": replace(bench.spec, num_inference_steps=draft_steps),
        "enhanced": replace(bench.spec, num_inference_steps=model.enhanced_steps or 2 * draft_steps),
    }
    # Not the prompts and seeds of the sweep, by which the steps were chosen.
    cases = draw_cases(arguments.clips or 160, "held out", pairs=False, seed=1)
    results = {name: bench.results(name, cases, spec) for name, spec in specs.items()}
    seconds = _sampling_seconds(bench.generator, specs, cases)
    found: Json = {
        name: {"steps": spec.num_inference_steps, "sampling_s": seconds[name], **brief(summarise(results[name]))}
        for name, spec in specs.items()
    }
    found["paired"] = paired(results["draft"], results["enhanced"])
    for name in specs:
        _say(_line(name, found[name]) + f", {seconds[name]:.2f} s of sampling")
    gain = found["paired"]["redraw_psnr_gain_db"]
    _say(f"enhanced is better by {gain['mean']:.2f} dB ({gain['low']:.2f} to {gain['high']:.2f})")
    return found


def _sampling_seconds(generator: Generator, specs: dict[str, VideoSpec], cases: Sequence[Case]) -> dict[str, float]:
    """The median for one clip alone; by turns, so that whatever else the machine does hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in specs}
    for case in cases[:TIMED_CLIPS]:
        for name, spec in specs.items():
            taken[name].append(generator.sampling_seconds(replace(spec, prompt=case.prompt, seed=case.seed)))
    return {name: round(statistics.median(each), 3) for name, each in taken.items()}


def sizes(bench: Bench, arguments: argparse.Namespace) -> Json:
    """Sizes and lengths beside the one that the model is made for."""
    cases = draw_cases(arguments.clips or 24, "held out", pairs=False)
    found = {}
    for width, height, num_frames in OTHER_SIZES:
        name = f"{width}x{height}, {num_frames} frames"
        spec = replace(bench.spec, width=width, height=height, num_frames=num_frames)
        found[name] = summarise(bench.results(name, cases, spec))
    _say("\n" + table(found))
    return dict(found)


def figure(bench: Bench, arguments: argparse.Namespace) -> None:
    """Draw `quality.png` from the sweep in the file, and `sheet.png` from clips of the first prompts of `score`."""
    from models.shapes.reading.charts import draw_quality, draw_sheet

    ones, pairs = SHEET_CLIPS
    cases = draw_cases(ones, "held out", pairs=False) + draw_cases(pairs, "held out", pairs=True)
    folder = arguments.out.parent
    draw_sheet([case.prompt for case in cases], list(bench.clips(cases))).save(folder / "sheet.png", optimize=True)
    draw_quality(_needed(arguments.out, "sweep")["sweep"], folder / "quality.png")
    _say(f"written to {folder}: quality.png, sheet.png")


def card(bench: Bench, arguments: argparse.Namespace) -> None:
    """Write the file's figures into the model card beside it."""
    path = arguments.out.parent / CARD
    write_card(path, _needed(arguments.out, "score", "compare", "sizes"))
    _say(f"written to {path}")


def _needed(path: Path, *names: str) -> Json:
    found = _read(path)
    if missing := [name for name in names if name not in found]:
        command = f"python -m models.shapes.evaluate {' '.join(missing)}"
        raise SystemExit(f"{path} has no {', '.join(missing)}; first: {command}")
    return found


EXPERIMENTS: dict[str, Callable[[Bench, argparse.Namespace], Json]] = {
    "score": score,
    "sweep": sweep,
    "compare": compare,
    "sizes": sizes,
}
OUTPUTS: dict[str, Callable[[Bench, argparse.Namespace], None]] = {"figure": figure, "card": card}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    bench = _bench(arguments)
    for name in arguments.what or [*EXPERIMENTS, *OUTPUTS]:
        if name in OUTPUTS:
            OUTPUTS[name](bench, arguments)
        else:
            _experiment(name, bench, arguments)


def _experiment(name: str, bench: Bench, arguments: argparse.Namespace) -> None:
    begun = time.monotonic()
    found = EXPERIMENTS[name](bench, arguments)
    made_with = {**_provenance(bench), "minutes": round((time.monotonic() - begun) / 60, 1)}
    keep(arguments.out, name, found | {"made_with": made_with})
    _say(f"\nwritten to {arguments.out}")


def keep(path: Path, name: str, found: Json) -> None:
    """Put results under their name into the file; what else is in it stays."""
    path.write_text(json.dumps(_read(path) | {name: found}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=lines[0], epilog="Size, steps and guidance: default in the profile.")
    parser.add_argument("what", nargs="*", choices=[[], *EXPERIMENTS, *OUTPUTS], metavar="what", help=_WHAT)
    parser.add_argument("--model", type=Path, default=FOLDER, help="the model's folder")
    parser.add_argument("--out", type=Path, default=FOLDER / "evaluation.json")
    parser.add_argument("--clips", type=int, help="of each point; default 320 (score), 64, 160 (compare), 24 (sizes)")
    parser.add_argument("--pairs", type=int, default=80, help="clips of two figures in score")
    parser.add_argument("--trained", type=int, default=80, help="clips of trained scenes in score")
    parser.add_argument("--vae-clips", type=int, default=40, help="at least so many clips for the VAE's PSNR in score")
    parser.add_argument("--sweep-steps", type=int, nargs="+", default=SWEPT_STEPS)
    parser.add_argument("--sweep-guidance", type=float, nargs="+", default=SWEPT_GUIDANCE)
    parser.add_argument("--batch", type=int, default=8, help="clips that are sampled at once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    for name in ("width", "height", "num-frames", "num-inference-steps"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--guidance-scale", type=float)
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> Bench:
    model = load_settings(PROFILE).model
    spec = VideoSpec(
        prompt="",
        negative_prompt="",
        width=arguments.width or model.width.default,
        height=arguments.height or model.height.default,
        num_frames=arguments.num_frames or model.num_frames.default,
        fps=model.fps.default,
        num_inference_steps=arguments.num_inference_steps or model.num_inference_steps.default,
        guidance_scale=arguments.guidance_scale or model.guidance_scale,
        seed=0,
    )
    generator = Generator(arguments.model, model.max_sequence_length)
    return Bench(arguments.model, generator, spec, arguments.batch)


def _provenance(bench: Bench) -> Json:
    """What the numbers hang on."""
    spec = {key: value for key, value in asdict(bench.spec).items() if key not in ("prompt", "seed", "exact")}
    weights = {name.partition("/")[0]: bench.folder / f"{name}.safetensors" for name in WEIGHTS}
    sums = {part: hashlib.sha256(path.read_bytes()).hexdigest() for part, path in weights.items()}
    return {**spec, "torch": torch.__version__, "threads": torch.get_num_threads(), "sha256": sums}


def _read(path: Path) -> Json:
    found: Json = json.loads(path.read_text()) if path.exists() else {}
    return found


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
