"""What a set of clips is worth: each asked for, read back, judged; the shares that are right."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from models.shapes.evaluation.statistics import Mean, Share, mean, share
from models.shapes.reading.matching import Verdict, judge
from models.shapes.reading.reader import read_clip
from models.shapes.reading.reading import Frames, Reading, redraw, redraw_psnr
from models.shapes.scenes.prompt import write_prompt
from models.shapes.scenes.scene import Figure, Scene, Split, draw_scene, draw_tracks

MEASURES = ("colour", "direction", "shape", "all_three", "number", "size", "speed", "background", "everything")


@dataclass(frozen=True, slots=True)
class Case:
    """A scene, one way to say it, and the seed of the clip's noise."""

    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """A clip of a case, read back."""

    case: Case
    reading: Reading
    verdict: Verdict
    psnr: float  # dB, see `redraw_psnr`


class Miss(TypedDict):
    """A clip that is not right in everything; in words, to be looked at."""

    prompt: str
    seed: int
    wrong: list[str]
    expected: str
    read: str


class Summary(TypedDict):
    """Of a set of clips."""

    clips: int
    shares: dict[str, Share]  # of the clips that are right, by measure
    redraw_psnr_db: Mean
    wrong: list[Miss]


def draw_cases(count: int, split: Split, pairs: bool, seed: int = 0) -> list[Case]:
    """Random scenes of the split, all of one figure or all of two; fewer of them are the first of more."""
    rng = random.Random(f"evaluation {split} {pairs} {seed}")
    return [_draw_case(rng, split, pairs) for _ in range(count)]


def _draw_case(rng: random.Random, split: Split, pairs: bool) -> Case:
    scene = draw_scene(rng, split, pair_share=1.0 if pairs else 0.0)
    return Case(scene, write_prompt(rng, scene), rng.getrandbits(40))


def drawn_clip(case: Case, height: int, width: int, num_frames: int) -> Frames:
    """The clip that a perfect model could make of a case; where its figures are comes from the seed."""
    tracks = draw_tracks(random.Random(case.seed), case.scene, width / height)
    return redraw(Reading(case.scene.background, case.scene.figures, tracks), height, width, num_frames)


def read_back(case: Case, frames: Frames) -> Result:
    reading = read_clip(frames)
    return Result(case, reading, judge(case.scene, reading), redraw_psnr(frames, reading))


def summarise(results: Sequence[Result]) -> Summary:
    """Raises ValueError: no results."""
    return Summary(
        clips=len(results),
        shares={name: share(outcomes(results, name)) for name in MEASURES if outcomes(results, name)},
        redraw_psnr_db=mean([result.psnr for result in results]),
        wrong=[miss(result) for result in results if not result.verdict.everything],
    )


def brief(summary: Summary) -> dict[str, Any]:
    """What a curve shows of a set of clips."""
    shares = {name: summary["shares"][name] for name in ("all_three", "everything")}
    return {"clips": summary["clips"], **shares, "redraw_psnr_db": summary["redraw_psnr_db"]}


def paired(draft: Sequence[Result], enhanced: Sequence[Result]) -> dict[str, Any]:
    """The difference between two results of the same cases."""
    gains = [after.psnr - before.psnr for before, after in zip(draft, enhanced, strict=True)]
    right = list(zip(outcomes(draft, "everything"), outcomes(enhanced, "everything"), strict=True))
    return {
        "redraw_psnr_gain_db": mean(gains),
        "clips_with_a_gain": sum(gain > 0 for gain in gains),
        "right_only_in_draft": right.count((True, False)),
        "right_only_in_enhanced": right.count((False, True)),
    }


def outcomes(results: Sequence[Result], measure: str) -> list[bool]:
    """Right or not in each clip that the measure says something of."""
    values = [getattr(result.verdict, measure) for result in results]
    return [value for value in values if value is not None]


def miss(result: Result) -> Miss:
    wrong = [name for name in MEASURES if getattr(result.verdict, name) is False]
    return Miss(
        prompt=result.case.prompt,
        seed=result.case.seed,
        wrong=[name for name in wrong if name not in ("all_three", "everything")],
        expected=in_words(result.case.scene),
        read="; ".join([in_words(result.reading.scene), *result.reading.remarks]),
    )


def in_words(scene: Scene) -> str:
    """Every figure with all that is known of it, then the background."""
    figures = ", ".join(_figure_in_words(figure) for figure in scene.figures) or "nothing"
    return f"{figures} on {scene.background}"


def _figure_in_words(figure: Figure) -> str:
    speed = "" if figure.direction == "still" else f" {figure.speed}"
    return f"{figure.size} {figure.colour} {figure.shape} {figure.direction}{speed}"


def table(summaries: dict[str, Summary]) -> str:
    """The shares of several sets side by side, in percent with their intervals."""
    width = max(len(name) for name in [*MEASURES, "redraw PSNR, dB"]) + 2
    lines = [" " * width + "".join(f"{name} ({each['clips']})".rjust(30) for name, each in summaries.items())]
    for measure in MEASURES:
        cells = [_percent(each["shares"].get(measure)).rjust(30) for each in summaries.values()]
        lines.append(measure.replace("_", " ").ljust(width) + "".join(cells))
    levels = [f"{each['redraw_psnr_db']['mean']:.2f}".rjust(30) for each in summaries.values()]
    return "\n".join([*lines, "redraw PSNR, dB".ljust(width) + "".join(levels)])


def _percent(value: Share | None) -> str:
    if value is None:
        return "-"
    return f"{value['share']:.1%} ({value['low']:.1%}-{value['high']:.1%})"
