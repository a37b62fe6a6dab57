"""An evaluation's bench with a model that is always right."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deployments.messages import VideoSpec
from models.shapes.evaluation.bench import Bench
from models.shapes.evaluation.generating import Generator
from models.shapes.evaluation.mp4 import through_mp4
from models.shapes.evaluation.results import Json, provenance
from models.shapes.evaluation.scoring import Case, draw_cases, drawn_clip
from models.shapes.reading.reading import Frames

MODEL = Path("models/shapes")
SPEC = VideoSpec("", "", 64, 64, 13, 24, 4, 2.0, 0)


class PerfectGenerator(Generator):
    """Draws what it is asked for; with fewer than eight steps the clip is grainy."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = {case.seed: case for case in cases}

    def make(self, specs: Sequence[VideoSpec], batch: int) -> Iterator[Frames]:
        for spec in specs:
            clip = drawn_clip(self._cases[spec.seed], spec.height, spec.width, spec.num_frames)
            grain = np.random.default_rng(spec.seed).normal(0, max(0, 8 - spec.num_inference_steps), clip.shape)
            yield through_mp4((clip + grain).clip(0, 255).astype(np.uint8), spec.fps)

    def sampling_seconds(self, spec: VideoSpec) -> float:
        return spec.num_inference_steps / 100


def bench(*sets: list[Case]) -> Bench:
    return Bench(MODEL, PerfectGenerator([case for cases in sets for case in cases]), SPEC, batch=2)


def cases_of_score(ones: int, pairs: int, trained: int) -> tuple[list[Case], list[Case], list[Case]]:
    return draw_cases(ones, "held out", False), draw_cases(pairs, "held out", True), draw_cases(trained, "train", False)


def made_by(working: Bench, found: Json) -> Json:
    return found | {"made_with": provenance(working.folder, working.spec) | found.get("made_with", {})}
