"""The training of the included model: its parts on small numbers, and the whole of it in a few steps."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MochiPipeline
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from torch import Tensor, nn

from models.shapes.scenes.scene import DIRECTIONS, Figure, Scene
from models.shapes.train import Recipe, main, train
from models.shapes.training.attention import MaskedAttention
from models.shapes.training.autoencoder import AutoencoderPlan, Window, train_autoencoder
from models.shapes.training.export import LOG_FILE, SUMS_FILE, model_files
from models.shapes.training.latents import Bucket
from models.shapes.training.optimise import FLOOR, Stage, average, claim, group, rate, set_rate, update
from models.shapes.training.positions import frequencies
from models.shapes.training.text_encoder import TextPlan, reading_loss, train_text_encoder
from models.shapes.training.tokenizer import new_tokenizer
from models.shapes.training.transformer import TransformerPlan, new_transformer
from tests.support import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

MODEL = ROOT / "models" / "shapes"
CPU = torch.device("cpu")
TINY_WINDOWS = (Window(2, 7, 32, 24), Window(1, 13, 32, 32))
TINY = Recipe(
    AutoencoderPlan(steps=4, windows=TINY_WINDOWS),
    TextPlan(steps=4, batch=3),
    TransformerPlan(steps=4, first_steps=2, shares=(0.5, 0.5), compiled=False),
    (Bucket(3, 32, 32, 13, batch=2), Bucket(3, 48, 32, 19, batch=2)),
    measured=2,
)


def test_the_rate_rises_then_falls_to_its_floor() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[0] < 0.02 and max(rates) > 0.97
    assert rates[-1] == pytest.approx(FLOOR, abs=1e-4)


def test_the_average_forgets_its_start() -> None:
    mean, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    mean.weight.data.fill_(100.0)
    model.weight.data.fill_(1.0)
    for step in range(60):
        average(mean, model, step, 0.999)
    assert mean.weight.item() == pytest.approx(1.0, abs=0.1)


def test_the_attention_that_is_trained_is_the_one_that_is_served() -> None:
    """Video tokens and valid text tokens as with diffusers' processor, for prompts of different lengths."""
    torch.manual_seed(0)
    transformer = new_transformer()
    nn.init.normal_(transformer.proj_out.weight)
    arguments = _arguments()
    wanted = transformer(**arguments, return_dict=False)[0]
    for block in transformer.transformer_blocks:
        assert isinstance(block.attn1.processor, MochiAttnProcessor2_0)
        block.attn1.processor = MaskedAttention()
    assert torch.allclose(transformer(**arguments, return_dict=False)[0], wanted, atol=1e-4)


def _arguments() -> dict[str, Tensor]:
    lengths = torch.tensor([3, 9])
    return {
        "hidden_states": torch.randn(2, 12, 3, 4, 6),
        "encoder_hidden_states": torch.randn(2, 9, 96),
        "timestep": torch.tensor([10.0, 700.0]),
        "encoder_attention_mask": torch.arange(9)[None] < lengths[:, None],
    }


def _walk(
    folder: Path, steps: int, stop_after: int | None = None, checkpoint_every_s: float = 120
) -> tuple[list[float], Stage]:
    """A stage that follows random numbers downhill."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimiser = torch.optim.AdamW([group(model.parameters(), 0.1, 0.0)])
    generator = torch.Generator().manual_seed(3)
    plan = AutoencoderPlan(steps=steps)
    stage = Stage("walk", folder, plan, generator, checkpoint_every_s, model=model, optimiser=optimiser)
    for done, step in enumerate(stage):
        if done == stop_after:
            break
        set_rate(optimiser, step, steps)
        loss = model(torch.randn(8, 4, generator=generator)).pow(2).mean()
        update(optimiser, loss, model.parameters())
        stage.note(loss)
    return [*model.weight.data.flatten().tolist(), *model.bias.data.tolist()], stage


def test_a_stopped_stage_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, log = _walk(_folder(tmp_path, "whole"), 60)
    torn = _folder(tmp_path, "torn")
    _walk(torn, 60, stop_after=23, checkpoint_every_s=0)
    resumed, resumed_log = _walk(torn, 60, checkpoint_every_s=0)
    assert resumed == whole
    assert resumed_log.log()["loss"] == log.log()["loss"] and len(log.log()["loss"]) == 2


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    first, stage = _walk(tmp_path, 10)
    again, other = _walk(tmp_path, 10, stop_after=0)
    assert again == first
    assert other.log()["loss"] == stage.log()["loss"]


def test_a_work_folder_belongs_to_one_recipe(tmp_path: Path) -> None:
    claim(tmp_path / "work", "ten steps")
    claim(tmp_path / "work", "ten steps")
    with pytest.raises(SystemExit, match=r"another recipe \(ten steps\).*twenty steps.*--work"):
        claim(tmp_path / "work", "twenty steps")


class Killed(Exception):
    """What ends a run in the middle of a test."""


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_killed_autoencoder_goes_on_exactly(tmp_path: Path, step: int) -> None:
    """In the steps that train both halves, and in those that train the decoder alone."""
    plan = AutoencoderPlan(steps=5, windows=TINY_WINDOWS)
    whole, _ = train_autoencoder(plan, _folder(tmp_path, "whole"), CPU)
    torn = _folder(tmp_path, "torn")
    with pytest.raises(Killed):
        train_autoencoder(plan, torn, CPU, checkpoint_every_s=0, update=_dying_at(step))
    resumed, _ = train_autoencoder(plan, torn, CPU)
    for kept, wanted in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(kept, wanted)


def _dying_at(step: int) -> Callable[..., None]:
    steps = iter(range(step))

    def die_or_update(*arguments: Any) -> None:
        if next(steps, None) is None:
            raise Killed
        update(*arguments)

    return die_or_update


@pytest.mark.slow
def test_the_text_encoder_learns_to_read(tmp_path: Path) -> None:
    """Better than whoever guesses, at the entropy of the attributes, can be."""
    _, stage = train_text_encoder(TextPlan(steps=200, batch=16), new_tokenizer(), tmp_path, CPU)
    guessed = sum(map(math.log, (4, 8, 4, 9, 3))) / 12
    assert stage.log()["loss"][-1] == [200, round(stage.loss, 5)]
    assert stage.loss < guessed


def test_nothing_is_learned_of_what_is_not_said() -> None:
    """The second figure of one alone, and how fast a still one is."""
    torch.manual_seed(0)
    logits = [torch.randn(1, choices, requires_grad=True) for choices in (4, 2, *(8, 4, 9, 3, 3) * 2)]
    loss = reading_loss(logits, [Scene((Figure("red", "star", "still"),), "grey")])
    taught = [bool(slope.any()) for slope in torch.autograd.grad(loss, logits)]
    assert taught == [True, True, True, True, True, True, False, *[False] * 5]


def test_in_every_head_a_wave_goes_along_with_each_direction() -> None:
    """Its angle is the same wherever the figure has got to, and changes for one that goes the other way."""
    moving = [each for each in DIRECTIONS.values() if each != (0, 0)]
    for head in frequencies().unbind(1):
        time, place_y, place_x = head[:, : len(moving)]
        speeds = time / torch.hypot(place_y, place_x)
        assert torch.allclose(speeds, speeds[0] * torch.tensor([math.hypot(*each) for each in moving]))
        for number, (dx, dy) in enumerate(moving):
            way = speeds[0] * (dy * place_y[number] + dx * place_x[number])
            assert abs(float(time[number] + way)) < 1e-5 and abs(float(time[number] - way)) > 0.1


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def test_a_shortened_recipe_keeps_its_sizes() -> None:
    recipe, short = Recipe(), Recipe().shortened(0.01)
    assert short.transformer.steps == recipe.transformer.steps // 100
    assert [bucket.name for bucket in short.buckets] == [bucket.name for bucket in recipe.buckets]
    assert Recipe().shortened(1) == recipe


@pytest.mark.slow
def test_training_makes_a_folder_that_the_pipeline_loads(tmp_path: Path) -> None:
    train(TINY, tmp_path / "work", tmp_path / "model", CPU)
    pipeline = MochiPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        "A red circle, moving right.", height=32, width=48, num_frames=13, num_inference_steps=2, output_type="np"
    ).frames
    assert frames.shape == (1, 13, 32, 48, 3)
    said = new_tokenizer()("a red circle moving right").input_ids
    assert pipeline.tokenizer("A RED circle, moving right!").input_ids == said
    log = json.loads((tmp_path / "model" / LOG_FILE).read_text())
    assert set(log["stages"]) == {"autoencoder", "latents", "text_encoder", "transformer"}
    train(TINY, tmp_path / "other work", tmp_path / "again", CPU)
    assert _weights(tmp_path / "again") == _weights(tmp_path / "model")


def _weights(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in model_files(folder)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fraction", "0"], "above 0 and at most 1"),
        (["--fraction", "nan", "--out", "x"], "above 0 and at most 1"),
        (["--fraction", "0.1"], "--fraction needs --out"),
        (["--device", "tpu"], "choose from"),
    ],
)
def test_a_bad_argument_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_the_files_of_the_included_model_are_those_that_were_trained() -> None:
    lines = [line.split("  ") for line in (MODEL / SUMS_FILE).read_text().splitlines()]
    assert {name: digest for digest, name in lines} == _weights(MODEL)


def test_the_weights_of_the_included_model_are_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*.safetensors")) < 16e6
