import shutil
from pathlib import Path

import pytest

from models.shapes.evaluate import EXPERIMENTS
from models.shapes.evaluation.arguments import ALL, CLIPS, MODEL, PROFILE, parse
from models.shapes.evaluation.results import WEIGHTS
from serve_app.config import load_settings


def test_nothing_given_is_everything_as_in_the_profile() -> None:
    options = parse("Evaluates.", [])
    assert options.what == list(ALL) == [*EXPERIMENTS, "figure", "card"] and list(CLIPS) == list(EXPERIMENTS)
    model = load_settings(PROFILE).model
    for name in ("width", "height", "num_frames", "num_inference_steps"):
        assert getattr(options, name) == getattr(model, name).default
    assert options.guidance_scale == model.guidance_scale
    assert options.out == MODEL / "evaluation.json"


def test_what_is_done_in_the_order_in_which_it_is_needed() -> None:
    assert parse("Evaluates.", ["card", "figure", "sweep", "score", "score"]).what == [
        "score",
        "sweep",
        "figure",
        "card",
    ]


def test_results_lie_beside_the_model_that_they_are_of(tmp_path: Path) -> None:
    for name in WEIGHTS:
        (tmp_path / name).parent.mkdir()
        shutil.copy(MODEL / name, tmp_path / name)
    model = ["--model", str(tmp_path)]
    assert parse("Evaluates.", model).out == tmp_path / "evaluation.json"
    assert parse("Evaluates.", [*model, "--out", "other.json"]).out == Path("other.json")


def test_sets_can_be_left_out() -> None:
    options = parse("Evaluates.", ["--pairs", "0", "--trained", "0"])
    assert (options.pairs, options.trained) == (0, 0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("scores", "argument what: got scores; allowed is one of score, sweep, compare, sizes, figure, card"),
        ("--clips 0", "argument --clips: got 0; allowed is a whole number from 1"),
        ("--clips some", "argument --clips: got some; allowed is a whole number from 1"),
        ("--pairs -1", "argument --pairs: got -1; allowed is a whole number from 0, and 0 leaves them out"),
        ("--trained 1.5", "argument --trained: got 1.5; allowed is a whole number from 0"),
        ("--vae-clips 0", "argument --vae-clips: got 0; allowed is a whole number from 1"),
        ("--batch 0", "argument --batch: got 0; allowed is a whole number from 1"),
        ("--threads 0", "argument --threads: got 0; allowed is a whole number from 1"),
        ("--width 0", "argument --width: got 0; allowed is a multiple of 16, from 16"),
        ("--height 72", "argument --height: got 72; allowed is a multiple of 16, from 16"),
        ("--num-frames 36", "argument --num-frames: got 36; allowed is 6k + 1 (7, 13, 19, 25, ...)"),
        ("--num-frames 1", "argument --num-frames: got 1; allowed is 6k + 1 (7, 13, 19, 25, ...)"),
        ("--num-inference-steps 1", "argument --num-inference-steps: got 1; allowed is a whole number from 2"),
        ("--sweep-steps 8 0", "argument --sweep-steps: got 0; allowed is a whole number from 2"),
        ("--guidance-scale 0", "argument --guidance-scale: got 0; allowed is a number from 1"),
        ("--guidance-scale nan", "argument --guidance-scale: got nan; allowed is a number from 1"),
        ("--sweep-guidance 1 inf", "argument --sweep-guidance: got inf; allowed is a number from 1"),
        ("--model nowhere", "argument --model: nowhere has no tokenizer/tokenizer.json; pass the folder of a trained"),
        ("score --second data", "argument --second: only card tells of a second training; name card, too, or nothing"),
        ("--out nowhere/a.json", "argument --out: there is no folder nowhere; make it first"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed(
    given: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse("Evaluates.", given.split())
    assert told in capsys.readouterr().err
