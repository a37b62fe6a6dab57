"""A model trained anew from nothing, beside the included one: what is kept of it, and what the card says."""

import json
from pathlib import Path

from models.shapes.evaluation.results import FILE, Json, needed
from models.shapes.training.export import LOG_FILE

HEADLINE = "held out, one figure"
REPORTED_AFTER = (0.1, 0.25, 0.5, 0.75, 1.0)  # the parts of a stage after which the card gives its loss


def second_training(folder: Path) -> Json:
    """Its log, and its score on the prompts of the headline.

    Raises:
        SystemExit: the folder has no log of a training, or no score of its weights as they are; it says what to run.
    """
    if not (folder / LOG_FILE).is_file():
        raise SystemExit(f"{folder} has no {LOG_FILE}; pass the folder that models.shapes.train wrote with --out")
    score = needed(folder / FILE, ["score"], folder)["score"]
    headline = {key: score["made"][HEADLINE][key] for key in ("clips", "shares")}
    log = json.loads((folder / LOG_FILE).read_text())
    return {"made": headline, "log": log, "made_with": score["made_with"]}


def reported_losses(stage: Json) -> list[float]:
    """The loss after each part of `REPORTED_AFTER`; nothing of a stage that has none."""
    losses = stage.get("loss", [])
    last = len(losses) - 1
    return [losses[round(part * last)][1] for part in REPORTED_AFTER if losses]
