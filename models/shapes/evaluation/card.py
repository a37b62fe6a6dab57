"""The figures of the model card, written from the results of an evaluation."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from models.shapes.evaluation.scoring import MEASURES
from models.shapes.evaluation.second_training import HEADLINE, REPORTED_AFTER, reported_losses

BEGIN = "<!-- figures: begin -->"
END = "<!-- figures: end -->"

Json = dict[str, Any]


def write_card(path: Path, found: Json) -> None:
    """Put the figures between the two marks of the card; the rest of it stays. Raises SystemExit: see `split_card`."""
    before, after = split_card(path)
    path.write_text(f"{before}{BEGIN}\n{figures(found)}\n{END}{after}")


def split_card(path: Path) -> tuple[str, str]:
    """What stands before and after the figures.

    Raises:
        SystemExit: there is no such file, or it does not have the two marks once each and in order.
    """
    if not path.is_file():
        raise SystemExit(f"there is no model card {path}; write one, with the lines {BEGIN} and {END} in it")
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise SystemExit(f"{path} must have the lines {BEGIN} and {END} once each, in this order; add them")
    return before, after


def figures(found: Json) -> str:
    """Markdown tables of `score`, `compare` and `sizes`, and of a second training where there was one."""
    score = found["score"]
    compare = found["compare"]
    sizes = {name: each for name, each in found["sizes"].items() if name != "made_with"}
    parts = [
        _shares(score["made"]),
        "The reader itself, on clips drawn by the program for the same scenes, written to mp4 and read back:",
        _shares(score["drawn"]),
        _vae(score["vae"]),
        _compared(compare),
        "Other sizes and lengths, held-out prompts of one figure:",
        _shares(sizes, ("all_three", "everything")),
    ]
    if "second training" in found:
        parts.append(_trained_again(score, found["second training"]))
    return "\n\n".join(parts)


def _shares(sets: Json, measures: Sequence[str] = MEASURES) -> str:
    """The longer side down: measures and sets as rows and columns, or the other way round."""
    down = [measure.replace("_", " ") for measure in measures]
    across = [f"{name} ({each['clips']} clips)" for name, each in sets.items()]
    cells = [[_percent(each["shares"].get(measure)) for each in sets.values()] for measure in measures]
    if len(across) > len(down):
        down, across, cells = across, down, [list(column) for column in zip(*cells, strict=True)]
    return _table(["right", *across], [[name, *row] for name, row in zip(down, cells, strict=True)])


def _vae(vae: Json) -> str:
    psnr = vae["psnr_db"]
    return (
        f"The autoencoder gives {vae['clips']} drawn held-out clips back at {psnr['mean']:.1f} dB PSNR in the mean, "
        f"{psnr['p5']:.1f} dB at the 5th percentile."
    )


def _compared(compare: Json) -> str:
    rows = [
        [
            name,
            str(compare[name]["steps"]),
            f"{compare[name]['sampling_s']:.2f} s",
            _percent(compare[name]["all_three"]),
            _percent(compare[name]["everything"]),
            f"{compare[name]['redraw_psnr_db']['mean']:.2f} dB",
        ]
        for name in ("draft", "enhanced")
    ]
    gain = compare["paired"]["redraw_psnr_gain_db"]
    clips = compare["draft"]["clips"]
    sentence = (
        f"Over {clips} pairs of the same prompt and seed the enhanced video's redraw PSNR is {gain['mean']:.2f} dB "
        f"better in the mean (95 % interval {gain['low']:.2f} to {gain['high']:.2f}), and better in "
        f"{compare['paired']['clips_with_a_gain']} pairs."
    )
    threads = compare["made_with"]["threads"]
    sampling = f"sampling on {threads} thread{'' if threads == 1 else 's'}"
    head = ["", "steps", sampling, "colour, direction, shape right", "everything right", "redraw PSNR"]
    return f"{_table(head, rows)}\n\n{sentence}"


def _trained_again(included: Json, second: Json) -> str:
    same = included["made_with"]["sha256"] == second["made_with"]["sha256"]
    log = [
        [name.replace("_", " "), f"{stage['seconds'] / 60:.0f}", *[f"{loss:.4f}" for loss in reported_losses(stage)]]
        for name, stage in second["log"]["stages"].items()
    ]
    head = ["stage", "minutes", *[f"loss after {part:.0%}" for part in REPORTED_AFTER]]
    parts = [
        f"Trained from nothing a second time, by the same command, on {second['log']['device']}"
        + ("; the weights are the same to the last bit:" if same else ":"),
        _shares({"included": included["made"][HEADLINE], "second": second["made"]}),
        _table(head, [[*row, *["-"] * (len(head) - len(row))] for row in log]),
    ]
    return "\n\n".join(parts)


def _percent(value: Json | None) -> str:
    return "-" if value is None else f"{value['share']:.1%} ({value['low']:.1%} to {value['high']:.1%})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
