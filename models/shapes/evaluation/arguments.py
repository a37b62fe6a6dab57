"""The command line of the evaluation."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from models.shapes.evaluation.results import FILE, WEIGHTS
from serve_app.config import load_settings

PROFILE = "configs/shapes.yaml"
MODEL = Path(__file__).parent.parent
# The clips of each point of an experiment; of one figure, in all experiments.
CLIPS = {"score": 320, "sweep": 64, "compare": 160, "sizes": 24}
OUTPUTS = ("figure", "card")
# In the order in which they are done: a later one may need the results of an earlier one.
ALL = (*CLIPS, *OUTPUTS)
SWEPT_STEPS = (4, 6, 8, 12, 16, 24, 40, 64)
SWEPT_GUIDANCE = (1.0, 2.0, 3.0, 4.5, 6.0)

T = TypeVar("T")


def parse(doc: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with `what` in the order of `ALL`. Exits with what is allowed if one of them cannot be."""
    parser = _parser(doc)
    options = parser.parse_args(argv)
    options.what = [name for name in ALL if not options.what or name in options.what]
    if lacking := [name for name in WEIGHTS if not (options.model / name).is_file()]:
        parser.error(f"argument --model: {options.model} has no {lacking[0]}; pass the folder of a trained model")
    if options.second and "card" not in options.what:
        parser.error("argument --second: only card tells of a second training; name card, too, or nothing")
    options.out = options.model / FILE if options.out is None else options.out
    if not options.out.parent.is_dir():
        parser.error(f"argument --out: there is no folder {options.out.parent}; make it first")
    return options


def _parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0], epilog=f"Size, steps, guidance: as in {PROFILE}.")
    clips = ", ".join(f"{count} ({name})" for name, count in CLIPS.items())
    parser.add_argument("what", nargs="*", type=_NAME, help=f"{', '.join(ALL)}; several, or none for all")
    parser.add_argument("--model", type=Path, default=MODEL, help="the model's folder")
    parser.add_argument("--out", type=Path, help=f"file of the results; default {FILE} in the model's folder")
    parser.add_argument(
        "--second", type=Path, help="card: folder of a model trained anew and scored; its log and score go in, too"
    )
    parser.add_argument("--clips", type=_COUNT, help=f"of one figure, for each point; default {clips}")
    parser.add_argument(
        "--pairs", type=_COUNT_OR_NONE, default=80, help="clips of two figures in score; default %(default)s"
    )
    parser.add_argument(
        "--trained", type=_COUNT_OR_NONE, default=80, help="clips of trained scenes in score; default %(default)s"
    )
    parser.add_argument(
        "--vae-clips",
        type=_COUNT,
        default=40,
        help="about so many clips for the VAE's PSNR in score; default %(default)s",
    )
    parser.add_argument("--sweep-steps", type=_STEPS, nargs="+", default=SWEPT_STEPS)
    parser.add_argument("--sweep-guidance", type=_GUIDANCE, nargs="+", default=SWEPT_GUIDANCE)
    parser.add_argument("--batch", type=_COUNT, default=8, help="clips that are sampled at once; default %(default)s")
    parser.add_argument("--threads", type=_COUNT, default=torch.get_num_threads(), help="of torch; default %(default)s")
    model = load_settings(PROFILE).model
    parser.add_argument("--width", type=_PIXELS, default=model.width.default)
    parser.add_argument("--height", type=_PIXELS, default=model.height.default)
    parser.add_argument("--num-frames", type=_FRAMES, default=model.num_frames.default)
    parser.add_argument(
        "--num-inference-steps",
        type=_STEPS,
        default=model.num_inference_steps.default,
        help="of all but compare, which is of the profile's draft and enhanced steps",
    )
    parser.add_argument("--guidance-scale", type=_GUIDANCE, default=model.guidance_scale)
    return parser


def _checked(convert: Callable[[str], T], allowed: str, fits: Callable[[T], bool]) -> Callable[[str], T]:
    """The type of an argument; its error says what is allowed."""

    def checked(text: str) -> T:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"got {text}; allowed is {allowed}")
        return value

    return checked


_NAME = _checked(str, f"one of {', '.join(ALL)}", lambda name: name in ALL)
_COUNT = _checked(int, "a whole number from 1", lambda count: count >= 1)
_COUNT_OR_NONE = _checked(int, "a whole number from 0, and 0 leaves them out", lambda count: count >= 0)
_PIXELS = _checked(int, "a multiple of 16, from 16", lambda side: side >= 16 and side % 16 == 0)
_FRAMES = _checked(int, "6k + 1 (7, 13, 19, 25, ...)", lambda frames: frames >= 7 and frames % 6 == 1)
_STEPS = _checked(int, "a whole number from 2", lambda steps: steps >= 2)
_GUIDANCE = _checked(float, "a number from 1, and 1 is no guidance", lambda scale: 1 <= scale < math.inf)
