"""The training of the included model: its parts on small numbers, and the whole of it in a few steps."""

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import MochiPipeline
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from torch import Tensor, nn

from models.shapes.train import Recipe, train
from models.shapes.training.attention import MaskedAttention
from models.shapes.training.autoencoder import AutoencoderPlan
from models.shapes.training.export import LOG_FILE, SUMS_FILE, model_files
from models.shapes.training.latents import Bucket
from models.shapes.training.optimise import FLOOR, Stage, average, group, rate, set_rate, update
from models.shapes.training.transformer import TransformerPlan, new_model

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

MODEL = Path(__file__).parents[1] / "models" / "shapes"
CPU = torch.device("cpu")
TINY = Recipe(
    AutoencoderPlan(steps=4),
    TransformerPlan(steps=4, first_steps=2, shares=(0.5, 0.5), compiled=False),
    (Bucket(3, 32, 32, 13, batch=2), Bucket(3, 48, 32, 19, batch=2)),
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
    transformer = new_model(20).transformer
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


def _walk(folder: Path, steps: int, stop_after: int | None = None) -> tuple[list[float], Stage]:
    """A stage that follows random numbers downhill."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimiser = torch.optim.AdamW([group(model.parameters(), 0.1, 0.0)])
    generator = torch.Generator().manual_seed(3)
    stage = Stage("walk", folder, AutoencoderPlan(steps=steps), generator, model=model, optimiser=optimiser)
    for done, step in enumerate(stage):
        if done == stop_after:
            break
        set_rate(optimiser, step, steps)
        loss = model(torch.randn(8, 4, generator=generator)).pow(2).mean()
        update(optimiser, loss, model.parameters())
        stage.note(loss)
    return [*model.weight.data.flatten().tolist(), *model.bias.data.tolist()], stage


def test_a_stopped_stage_goes_on_as_if_it_had_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, log = _walk(_folder(tmp_path, "whole"), 60)
    monkeypatch.setattr("models.shapes.training.optimise.CHECKPOINT_EVERY_S", 0.0)
    torn = _folder(tmp_path, "torn")
    _walk(torn, 60, stop_after=23)
    resumed, resumed_log = _walk(torn, 60)
    assert resumed == whole
    assert resumed_log.log()["loss"] == log.log()["loss"] and len(log.log()["loss"]) == 2


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    first, stage = _walk(tmp_path, 10)
    again, other = _walk(tmp_path, 10, stop_after=0)
    assert again == first
    assert other.log()["loss"] == stage.log()["loss"]


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    _walk(tmp_path, 10)
    with pytest.raises(SystemExit, match=r"another plan.*steps=10.*steps=20.*--work"):
        _walk(tmp_path, 20)


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def test_a_shortened_recipe_keeps_its_sizes() -> None:
    recipe, short = Recipe(), Recipe().shortened(0.01)
    assert short.transformer.steps == recipe.transformer.steps // 100
    assert [bucket.name for bucket in short.buckets] == [bucket.name for bucket in recipe.buckets]
    assert Recipe().shortened(1) == recipe


def test_training_makes_a_folder_that_the_pipeline_loads(tmp_path: Path) -> None:
    train(TINY, tmp_path / "work", tmp_path / "model", CPU)
    pipeline = MochiPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        "A red circle, moving right.", height=32, width=48, num_frames=13, num_inference_steps=2, output_type="np"
    ).frames
    assert frames.shape == (1, 13, 32, 48, 3)
    log = json.loads((tmp_path / "model" / LOG_FILE).read_text())
    assert set(log["stages"]) == {"autoencoder", "latents", "transformer"}
    before = _weights(tmp_path / "model")
    train(TINY, tmp_path / "work", tmp_path / "again", CPU)
    assert _weights(tmp_path / "again") == before


def test_training_twice_gives_the_same(tmp_path: Path) -> None:
    short = replace(TINY, transformer=replace(TINY.transformer, steps=2, first_steps=1))
    for name in ("one", "two"):
        train(short, tmp_path / f"{name}-work", tmp_path / name, CPU)
    assert _weights(tmp_path / "one") == _weights(tmp_path / "two")


def _weights(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in model_files(folder)}


def test_the_average_is_what_is_kept_and_not_the_last_step(tmp_path: Path) -> None:
    model = new_model(10)
    mean = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average(mean, model, step=10_000, decay=0.9)
    for kept, moved in zip(mean.parameters(), model.parameters(), strict=True):
        assert torch.allclose(kept, moved - 0.9, atol=1e-5)


def test_the_files_of_the_included_model_are_those_that_were_trained() -> None:
    lines = [line.split("  ") for line in (MODEL / SUMS_FILE).read_text().splitlines()]
    assert {name: digest for digest, name in lines} == _weights(MODEL)


def test_the_weights_of_the_included_model_are_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*.safetensors")) < 16e6
