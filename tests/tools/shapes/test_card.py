import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.replica.host import one_thread
from models.shapes.evaluate import SEEDS, card, compare, main, score, sizes
from models.shapes.evaluation.card import BEGIN, END, figures
from models.shapes.evaluation.generating import Generator
from models.shapes.evaluation.results import WEIGHTS, Json, keep, needed, weight_sums
from models.shapes.evaluation.scoring import draw_cases
from tests.support.shapes_bench import MODEL, bench, cases_of_score, made_by


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


def test_results_are_kept_beside_others(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    keep(path, "score", {"clips": 1})
    keep(path, "sweep", {"clips": 2})
    keep(path, "score", {"clips": 3})
    assert json.loads(path.read_text()) == {"score": {"clips": 3}, "sweep": {"clips": 2}}


@pytest.fixture(scope="module")
def evaluated() -> Json:
    """The results that a card is written from, of clips that are all right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOCHI_SERVE__MODEL__NUM_INFERENCE_STEPS__DEFAULT", "4")
        options = argparse.Namespace(clips=2, pairs=1, trained=1, vae_clips=1)
        others = [draw_cases(2, "held out", False, SEEDS[name]) for name in ("compare", "sizes")]
        working = bench(*cases_of_score(2, 1, 1), *others)
        made = {
            name: each(working, options) for name, each in (("score", score), ("compare", compare), ("sizes", sizes))
        }
        return {name: made_by(working, found) for name, found in made.items()}


@pytest.fixture
def written(tmp_path: Path, evaluated: Json) -> Path:
    """A file of these results, beside a model card."""
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    path = tmp_path / "found.json"
    path.write_text(json.dumps(evaluated))
    return path


@pytest.mark.slow
def test_the_card_gets_the_figures_between_its_marks(written: Path) -> None:
    card(argparse.Namespace(out=written, model=MODEL, second=None))
    told = (written.parent / "README.md").read_text()
    assert told.startswith(f"before\n{BEGIN}\n| right |") and told.endswith(f"{END}\nafter\n") and "old" not in told
    assert "| held out, one figure (2 clips) |" in told and "100.0% (34.2% to 100.0%)" in told
    assert "\n| number | 100.0%" in told
    assert "| sampling on 1 thread |" in told
    assert "Over 2 pairs" in told and "96x96, 49 frames" in told


@pytest.fixture
def second(tmp_path: Path, evaluated: Json) -> Path:
    """A folder of the same weights with their score and the log of a training."""
    folder = tmp_path / "second"
    for name in WEIGHTS:
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(MODEL / name, folder / name)
    keep(folder / "evaluation.json", "score", evaluated["score"])
    losses = [[50 * n, n / 8] for n in range(1, 22)]
    stages = {"latents": {"seconds": 90.0}, "text_encoder": {"seconds": 150.0, "loss": losses}}
    (folder / "training.json").write_text(json.dumps({"device": "CPU, 2 threads", "stages": stages}))
    return folder


def test_the_card_tells_of_a_second_training(written: Path, second: Path) -> None:
    for given in (second, None):
        card(argparse.Namespace(out=written, model=MODEL, second=given))
        told = (written.parent / "README.md").read_text()
        assert "by the same command, on CPU, 2 threads; the weights are the same to the last bit:" in told
        assert "| right | included (2 clips) | second (2 clips) |" in told
        assert "| latents | 2 | - | - | - | - | - |" in told
        assert "| text encoder | 2 | 0.3750 | 0.7500 | 1.3750 | 2.0000 | 2.6250 |" in told


def test_a_second_training_of_other_weights_is_not_told_to_be_the_same(written: Path, second: Path) -> None:
    weights = second / WEIGHTS[0]
    weights.write_text("{}")
    with pytest.raises(SystemExit, match=r"has score of other weights than .*second; first, .*evaluate score$"):
        main(["card", "--out", str(written), "--second", str(second)])
    sums = weight_sums(second)
    found = json.loads((second / "evaluation.json").read_text())["score"]
    keep(second / "evaluation.json", "score", found | {"made_with": found["made_with"] | {"sha256": sums}})
    main(["card", "--out", str(written), "--second", str(second)])
    told = (written.parent / "README.md").read_text()
    assert "by the same command, on CPU, 2 threads:" in told and "last bit" not in told


def test_a_second_training_without_a_log_is_refused(written: Path, second: Path) -> None:
    (second / "training.json").unlink()
    with pytest.raises(SystemExit, match=r"second has no training\.json; pass the folder that"):
        main(["card", "--out", str(written), "--second", str(second)])
    assert "old" in (written.parent / "README.md").read_text()


def test_a_card_is_not_written_without_all_results(written: Path, evaluated: Json) -> None:
    written.write_text(json.dumps({"compare": evaluated["compare"]}))
    with pytest.raises(SystemExit, match=r"has no score, sizes; first, .*evaluate score sizes"):
        card(argparse.Namespace(out=written, model=MODEL, second=None))


def test_a_card_is_not_written_from_results_of_other_weights(written: Path, evaluated: Json) -> None:
    other = {"made_with": {"sha256": dict.fromkeys(evaluated["score"]["made_with"]["sha256"], "0" * 64)}}
    written.write_text(json.dumps(evaluated | {"compare": evaluated["compare"] | other, "score": {"made_with": {}}}))
    with pytest.raises(SystemExit, match=r"has score, compare of other weights than .*evaluate score compare$"):
        card(argparse.Namespace(out=written, model=MODEL, second=None))
    assert "old" in (written.parent / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no model card"),
        (f"only {BEGIN}", "must have the lines"),
        (f"{END} {BEGIN}", "must have the lines"),
        (f"{BEGIN} {END} {END}", "must have the lines"),
        (f"{BEGIN} {BEGIN} {END}", "must have the lines"),
    ],
)
def test_a_card_without_marks_is_refused_before_the_work(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    with pytest.raises(SystemExit, match=told):
        main(["--out", str(tmp_path / "found.json"), "--clips", "1"])
    assert not (tmp_path / "found.json").exists()


def test_results_that_this_run_does_not_make_are_refused_before_the_work(written: Path, evaluated: Json) -> None:
    with pytest.raises(SystemExit, match="has no sweep; first, "):
        main(["figure", "--out", str(written)])
    written.write_text(json.dumps(evaluated | {"sizes": {"made_with": {}}}))
    with pytest.raises(SystemExit, match="has sizes of other weights"):
        main(["score", "compare", "card", "--out", str(written)])


def test_a_card_is_written_without_the_model_being_loaded(written: Path) -> None:
    def load(folder: Path, max_tokens: int) -> Generator:
        raise AssertionError("the model was loaded")

    main(["card", "--out", str(written), "--threads", "1"], load)
    assert "100.0%" in (written.parent / "README.md").read_text()


def test_the_card_of_the_included_model_tells_its_evaluation() -> None:
    names = ("score", "sweep", "compare", "sizes")
    found = needed(MODEL / "evaluation.json", names, MODEL)
    assert figures(found) in (MODEL / "README.md").read_text()
    lines = (MODEL / "SHA256SUMS").read_text().splitlines()
    sums = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    assert all(found[name]["made_with"]["sha256"].items() <= sums.items() for name in names)
