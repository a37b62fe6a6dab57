"""Clips of many prompts made and read back, with a line now and then that says how it goes."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deployments.messages import VideoSpec
from models.shapes.evaluation.generating import Generator
from models.shapes.evaluation.mp4 import through_mp4
from models.shapes.evaluation.scoring import Case, Result, drawn_clip, outcomes, read_back
from models.shapes.reading.reading import Frames

REPORT_EVERY_S = 10


@dataclass(frozen=True, slots=True)
class Bench:
    """What every experiment works with."""

    folder: Path  # of the model
    generator: Generator
    spec: VideoSpec  # a clip's size, length, steps and guidance, of no prompt yet
    batch: int  # clips that are sampled at once

    def results(self, name: str, cases: Sequence[Case], spec: VideoSpec | None = None) -> list[Result]:
        """Make and read a clip for each case."""
        return _read(name, cases, self.clips(cases, spec))

    def clips(self, cases: Sequence[Case], spec: VideoSpec | None = None) -> Iterator[Frames]:
        base = spec or self.spec
        return self.generator.make([replace(base, prompt=case.prompt, seed=case.seed) for case in cases], self.batch)

    def drawn_results(self, name: str, cases: Sequence[Case]) -> list[Result]:
        """Draw and read a clip for each case: what a perfect model would get."""
        return _read(f"drawn: {name}", cases, (through_mp4(self.drawn(case), self.spec.fps) for case in cases))

    def drawn(self, case: Case) -> Frames:
        return drawn_clip(case, self.spec.height, self.spec.width, self.spec.num_frames)


def _read(name: str, cases: Sequence[Case], clips: Iterator[Frames]) -> list[Result]:
    progress = _Progress(name, len(cases))
    return [progress.done(read_back(case, clip)) for case, clip in zip(cases, clips, strict=True)]


class _Progress:
    """How many clips of how many, and how they were."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._results: list[Result] = []
        self._begun = time.monotonic()
        self._reported = self._begun

    def done(self, result: Result) -> Result:
        self._results.append(result)
        now = time.monotonic()
        if now - self._reported > REPORT_EVERY_S or len(self._results) == self._total:
            self._reported = now
            self._report((now - self._begun) / len(self._results))
        return result

    def _report(self, each: float) -> None:
        right = sum(outcomes(self._results, "all_three"))
        say(f"{self._name}: {len(self._results)}/{self._total} clips, {right} right, {each:.1f} s a clip")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
