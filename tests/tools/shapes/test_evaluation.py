import argparse
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.replica.host import one_thread
from models.shapes.evaluate import SEEDS, compare, figure, score, sizes, sweep
from models.shapes.evaluation.generating import Generator, vae_round_trip
from models.shapes.evaluation.results import WEIGHTS, keep
from models.shapes.evaluation.scoring import (
    Case,
    Result,
    draw_cases,
    drawn_clip,
    in_words,
    paired,
    read_back,
    summarise,
    table,
)
from models.shapes.evaluation.statistics import mean, share
from models.shapes.reading.reading import psnr
from models.shapes.scenes.scene import Figure, Scene
from tests.support.shapes_bench import MODEL, SPEC, bench, cases_of_score, made_by

MAX_TOKENS = 64
# The VAE gives drawn clips back at 33 dB and more; small ones, whose edges are more of the picture, at a little less.
LEAST_VAE_PSNR = 27
MOVING = Case(Scene((Figure("red", "star", "up left", "big", "slow"),), "grey"), "a red star", 1)
STILL = Case(Scene((Figure("blue", "square", "still"),)), "a blue square", 2)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(98, 100, 0.9300, 0.9945), (10, 10, 0.7225, 1.0), (0, 4, 0.0, 0.4899), (1, 2, 0.0945, 0.9055)],
)
def test_wilson_interval(right: int, of: int, low: float, high: float) -> None:
    found = share([True] * right + [False] * (of - right))
    assert (found["right"], found["of"], found["share"]) == (right, of, right / of)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=2e-4)


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    rng = random.Random(0)
    values = [rng.gauss(3, 2) for _ in range(400)]
    found = mean(values)
    half = 1.96 * float(np.std(values)) / math.sqrt(len(values))
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert (found["low"], found["high"]) == pytest.approx((found["mean"] - half, found["mean"] + half), abs=0.02)
    assert found["p5"] == pytest.approx(np.percentile(values, 5), abs=1e-4)
    assert mean(values) == found


def test_nothing_has_no_share_and_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one outcome"):
        share([])
    with pytest.raises(ValueError, match="at least one value"):
        mean([])


@pytest.mark.parametrize("pairs", [False, True])
def test_cases_are_of_their_split_and_always_the_same(pairs: bool) -> None:
    cases = draw_cases(40, "held out", pairs)
    assert all(case.scene.held_out and len(case.scene.figures) == 1 + pairs for case in cases)
    assert not any(case.scene.held_out for case in draw_cases(40, "train", pairs))
    assert cases == draw_cases(40, "held out", pairs) != draw_cases(40, "held out", pairs, seed=1)
    assert cases[:10] == draw_cases(10, "held out", pairs)
    assert len({case.seed for case in cases}) == 40


def results(shown: Sequence[Case], asked: Sequence[Case]) -> list[Result]:
    """What is read when a clip of the one is shown where the other was asked for."""
    return [read_back(case, drawn_clip(other, 64, 64, 13)) for other, case in zip(shown, asked, strict=True)]


def test_a_summary_counts_each_measure_where_it_applies() -> None:
    asked = [MOVING, STILL, replace(MOVING, scene=Scene((Figure("red", "star", "up left", "small", "slow"),), "grey"))]
    found = summarise(results([MOVING, STILL, MOVING], asked))
    right = {name: (value["right"], value["of"]) for name, value in found["shares"].items()}
    assert right == {
        **dict.fromkeys(("colour", "direction", "shape", "all_three", "number", "background"), (3, 3)),
        "size": (2, 3),
        "speed": (2, 2),
        "everything": (2, 3),
    }


def test_a_miss_tells_what_was_asked_for_and_what_was_read() -> None:
    (miss,) = summarise(results([STILL], [MOVING]))["wrong"]
    assert (miss["prompt"], miss["seed"]) == ("a red star", 1)
    assert miss["wrong"] == ["colour", "direction", "shape", "size", "speed", "background"]
    assert miss["expected"] == "big red star up left slow on grey"
    assert miss["read"] == "medium blue square still on black"


def test_an_empty_clip_in_words() -> None:
    empty = Case(Scene((), "dark blue"), "", 3)
    (miss,) = summarise(results([empty], [MOVING]))["wrong"]
    assert miss["read"] == "nothing on dark blue; nothing stands out from the ground"
    assert "number" in miss["wrong"]


def test_a_pair_in_words() -> None:
    scene = Scene((*STILL.scene.figures, *MOVING.scene.figures))
    assert in_words(scene) == "medium blue square still, big red star up left slow on black"


def test_the_table_has_a_column_for_each_set() -> None:
    still = summarise(results([STILL, STILL], [STILL, STILL]))
    lines = table({"moving": summarise(results([STILL], [MOVING])), "still": still}).splitlines()
    assert lines[0].split() == ["moving", "(1)", "still", "(2)"]
    rows = {line[:17].strip(): line[17:].split() for line in lines[1:]}
    assert rows["colour"] == ["0.0%", "(0.0%-79.3%)", "100.0%", "(34.2%-100.0%)"]
    assert rows["speed"] == ["0.0%", "(0.0%-79.3%)", "-"]
    assert set(rows) > {"all three", "everything", "redraw PSNR, dB"}


def test_pairs_of_results() -> None:
    (good,), (bad,) = results([MOVING], [MOVING]), results([STILL], [MOVING])
    draft = [replace(good, psnr=30.0), replace(bad, psnr=31.0), replace(good, psnr=30.0), replace(bad, psnr=20.0)]
    enhanced = [replace(good, psnr=31.0), replace(good, psnr=33.0), replace(bad, psnr=29.0), replace(bad, psnr=20.0)]
    found = paired(draft, enhanced)
    assert found["redraw_psnr_gain_db"]["mean"] == 0.5
    assert (found["clips_with_a_gain"], found["right_only_in_draft"], found["right_only_in_enhanced"]) == (2, 1, 1)


def test_no_prompt_and_seed_serves_two_experiments() -> None:
    met = [(case.prompt, case.seed) for seed in SEEDS.values() for case in draw_cases(40, "held out", False, seed)]
    assert len(set(met)) == len(met) == 40 * 4


def test_score(capsys: pytest.CaptureFixture[str]) -> None:
    found = score(bench(*cases_of_score(3, 2, 1)), argparse.Namespace(clips=3, pairs=2, trained=1, vae_clips=2))
    assert [each["clips"] for each in found["made"].values()] == [3, 2, 1]
    for kind in ("made", "drawn"):
        assert all(each["shares"]["everything"]["share"] == 1 and not each["wrong"] for each in found[kind].values())
    assert found["vae"]["psnr_db"]["mean"] > LEAST_VAE_PSNR
    assert "held out, two figures: 2/2 clips, 2 right" in capsys.readouterr().out


def test_score_without_pairs_and_trained_scenes() -> None:
    found = score(bench(*cases_of_score(1, 0, 0)), argparse.Namespace(clips=1, pairs=0, trained=0, vae_clips=1))
    assert list(found["made"]) == list(found["drawn"]) == ["held out, one figure"]


@pytest.mark.slow
def test_sweep_and_its_pictures(tmp_path: Path) -> None:
    cases = draw_cases(2, "held out", False, SEEDS["sweep"])
    working = bench(cases, draw_cases(6, "held out", False), draw_cases(2, "held out", True))
    swept = {"sweep_steps": (2, 4, 8), "sweep_guidance": (1.0, 2.0)}
    options = argparse.Namespace(clips=2, **swept, out=tmp_path / "found.json", model=MODEL)
    found = sweep(working, options)
    few, default, many = (point["redraw_psnr_db"]["mean"] for point in found["steps"])
    assert many > default > few + 1
    assert [point["guidance"] for point in found["guidance"]] == [1.0, 2.0]
    assert found["made_with"] == {"num_inference_steps": [2, 4, 8], "guidance_scale": [1.0, 2.0]}
    with pytest.raises(SystemExit, match="no sweep"):
        figure(working, options)
    keep(options.out, "sweep", made_by(working, found))
    figure(working, options)
    with Image.open(tmp_path / "quality.png") as quality, Image.open(tmp_path / "sheet.png") as sheet:
        assert quality.width == 1600
        assert sheet.width == 2 * 10 + 8 * 100 - 4 and sheet.height == 2 * 10 + 8 * 124 - 4


def test_the_default_settings_are_on_both_curves_and_made_once(capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(clips=1, sweep_steps=(2, 4), sweep_guidance=(1.0, 2.0))
    found = sweep(bench(draw_cases(1, "held out", False, SEEDS["sweep"])), options)
    assert found["steps"][1] == found["guidance"][1]
    assert capsys.readouterr().out.count("1/1 clips") == 3


def test_compare(draft_of_4: None) -> None:
    found = compare(bench(draw_cases(4, "held out", False, SEEDS["compare"])), argparse.Namespace(clips=4))
    assert (found["draft"]["steps"], found["enhanced"]["steps"]) == (4, 10)
    assert (found["draft"]["sampling_s"], found["enhanced"]["sampling_s"]) == (0.04, 0.1)
    assert found["paired"]["clips_with_a_gain"] == 4 and found["paired"]["redraw_psnr_gain_db"]["low"] > 0
    assert found["made_with"] == {"num_inference_steps": [4, 10]}


def test_sizes() -> None:
    found = sizes(bench(draw_cases(1, "held out", False, SEEDS["sizes"])), argparse.Namespace(clips=1))
    made_with = found.pop("made_with")
    assert [each["shares"]["everything"]["right"] for each in found.values()] == [1] * 5
    assert made_with == {"width": [64, 80, 96, 128], "height": [64, 96, 128], "num_frames": [25, 37, 49]}


@pytest.fixture
def draft_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCHI_SERVE__MODEL__NUM_INFERENCE_STEPS__DEFAULT", "4")
    monkeypatch.setenv("MOCHI_SERVE__MODEL__ENHANCED_STEPS", "10")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(MODEL, MAX_TOKENS)


def test_a_batch_makes_the_clips_that_each_alone_makes(generator: Generator) -> None:
    base = replace(SPEC, prompt="a red circle", width=32, height=48, num_frames=7)
    specs = [base, replace(base, seed=1, num_inference_steps=2), replace(base, seed=2, guidance_scale=1.0)]
    for together, spec in zip(generator.sample(specs), specs, strict=True):
        assert torch.allclose(together, generator.sample([spec])[0], atol=1e-4)
    clips = list(generator.make(specs, batch=2))
    assert [clip.shape for clip in clips] == [(7, 48, 32, 3)] * 3
    assert psnr(clips[2], next(generator.make(specs[2:], batch=1))) > 40
    assert generator.sampling_seconds(base) > 0


@pytest.mark.parametrize("case", [STILL, MOVING])
def test_the_vae_gives_a_clip_back(case: Case) -> None:
    clip = drawn_clip(case, 64, 64, 13)
    (again,) = vae_round_trip(MODEL, [clip])
    assert again.shape == clip.shape and again.dtype == np.uint8
    assert psnr(again, clip) > LEAST_VAE_PSNR


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    size = ("--width", "32", "--height", "32", "--num-frames", "7", "--num-inference-steps", "2", "--threads", "1")
    command = [sys.executable, "-m", "models.shapes.evaluate", "sizes", "--clips", "1", *size]
    subprocess.run([*command, "--out", str(tmp_path / "found.json")], check=True)
    made_with = json.loads((tmp_path / "found.json").read_text())["sizes"]["made_with"]
    assert made_with["num_inference_steps"] == 2 and set(made_with["sha256"]) == set(WEIGHTS)
