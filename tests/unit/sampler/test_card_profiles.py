"""The profiles for cards of 24 and 48 GB: what each stage takes at the profile's largest video, computed on tensors
without memory, fits the card.

Two figures are an H100's (`benchmarks/results`): what the decoder takes, and a process's context. A step is counted as
it is without torch's compiler, which takes a third less (6.1 GB where 9.0 are computed and measured without).
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import full_size as fs
from deployments.clip import GUIDED_ROWS, LATENT_CHANNELS, PATCH, LatentShape, latent_tokens
from deployments.dtypes import WeightsName
from deployments.mochi.denoise import denoise_step
from deployments.mochi.probe import probe_sample
from deployments.mochi.weights.quantised_weights import quantise
from deployments.sampler.memory_measure import LATENT_COPIES, share_budget
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint
from deployments.step_rules import Quality, step_plan
from serve_app.config import AppSettings, load_settings
from tests.support import ROOT
from tests.support.workers.meta_memory import MetaMemory

CARDS = {"mochi-1-24gb": 24_000_000_000, "mochi-1-48gb": 48_000_000_000}
LAYERS = 48
WIDTH = 3072
TEXT_TOKENS = 256
CONTEXT = 600_000_000
DECODER, DECODER_WEIGHTS = 11_760_000_000, 730_000_000  # at 848x480, weights included
FULL_PICTURE = 848 * 480


@pytest.fixture(autouse=True)
def attention_without_scores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the kernels of GPUs; on the device meta torch takes the way that holds the scores of all pairs."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        return torch.empty_like(query)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    with torch.no_grad():
        yield


@cache
def transformer(weights: WeightsName | None, layers: int = 2) -> Any:
    """Of Mochi 1's width in bf16, without memory; a step takes as much with two blocks as with all."""
    made = fs.meta_transformer(num_layers=layers)
    torch.nn.Module.to(made, torch.bfloat16)  # diffusers' own `to` warns of a list that is empty here
    if weights is not None:
        quantise(made, weights)
    return made


def held(module: Any) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def weight_bytes(weights: WeightsName | None) -> int:
    """Of the whole transformer: each block but the last takes the same."""
    two, three = (sum(tensor.nbytes for tensor in held(transformer(weights, layers))) for layers in (2, 3))
    return two + (LAYERS - 2) * (three - two)


def step_bytes(weights: WeightsName | None, shape: LatentShape, rows_at_once: int | None) -> int:
    """What a guided step takes at its highest beside weights, latents and tables."""
    sample = probe_sample(transformer(weights), shape, TEXT_TOKENS)
    texts = (sample.prompt.caption, sample.prompt.pooled)
    memory = MetaMemory([*held(transformer(weights)), sample.latents, sample.sigmas, sample.rope, *texts])
    with memory:
        denoise_step(transformer(weights), [sample], rows_at_once=rows_at_once)
    return memory.peak


def profile(weights: WeightsName | None, shape: LatentShape, rows_at_once: int | None) -> MemoryProfile:
    """As the sampler would measure it, but at this shape itself."""
    rows = rows_at_once or GUIDED_ROWS
    return MemoryProfile(
        step_token_bytes=-(-step_bytes(weights, shape, rows_at_once) // (rows * latent_tokens(shape))),
        step_row_bytes=0,
        held_token_bytes=LATENT_COPIES * LATENT_CHANNELS * PATCH**2 * 4,
        held_row_bytes=TEXT_TOKENS * WIDTH // 2 * 2,
        table_token_bytes=WIDTH * 4,
        kept_token_bytes=WIDTH * 2,
        rows_at_once=rows_at_once or 0,
    )


def largest(settings: AppSettings) -> LatentShape:
    """Of all videos that may be asked for, the one of most tokens: by default."""
    model = settings.model
    shape = fs.clip_spec(model.width.default, model.height.default, model.num_frames.default, steps=4).clip.latents
    assert model.max_picture_pixels is not None
    for frames in range(model.num_frames.minimum, model.num_frames.maximum + 1, 6):
        picture = min(model.max_picture_pixels, model.max_pixels // frames)
        assert (frames // 6 + 1) * picture // 16**2 <= latent_tokens(shape)
    return shape


def load(name: str) -> AppSettings:
    return load_settings(str(ROOT / "configs" / f"{name}.yaml"), environ={})


def test_what_is_computed_is_what_an_h100_took() -> None:
    """8.97 GB for a step that is not compiled, with its tables; weights of 20.06."""
    shape = fs.clip_spec(848, 480, 163, steps=4).clip.latents
    tables = latent_tokens(shape) * WIDTH * 4
    assert step_bytes(None, shape, None) + tables == pytest.approx(8_972_000_000, rel=0.01)
    assert weight_bytes(None) == pytest.approx(20_060_000_000, rel=0.001)


def test_weights_of_8_bits_at_full_size() -> None:
    """By fp8 5.4 GB less, of which an H100 showed 6.2 at the peak of a step."""
    assert weight_bytes("int8") == pytest.approx(10_140_000_000, rel=0.001)
    assert weight_bytes("fp8") == pytest.approx(14_630_000_000, rel=0.001)


def test_one_row_after_the_other_takes_half() -> None:
    shape = fs.clip_spec(640, 352, 163, steps=4).clip.latents
    together, apart = (step_bytes("int8", shape, rows) for rows in (None, 1))
    assert 0.5 < apart / together < 0.53


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("quality", ["exact", "fast", "draft"])
def test_the_largest_video_of_each_quality_fits_the_samplers_share(name: str, quality: Quality) -> None:
    settings, card = load(name), CARDS[name]
    model, shape = settings.model, largest(settings)
    plan = step_plan(model.steps_of(quality), model.guidance_of(quality), model.rules_of(quality))
    sample = SampleFootprint(shape, plan.max_rows, plan.max_rows_kept)
    weights, fraction = weight_bytes(model.weights), settings.sampler.memory_fraction
    assert fraction is not None
    needed = profile(model.weights, shape, settings.sampling.rows_at_once).needed([sample])
    assert needed <= share_budget(card, weights, fraction)


@pytest.mark.parametrize("name", CARDS)
def test_the_decoder_fits_its_share(name: str) -> None:
    settings, card = load(name), CARDS[name]
    picture = settings.model.max_picture_pixels
    assert picture is not None
    needed = DECODER_WEIGHTS + (DECODER - DECODER_WEIGHTS) * picture / FULL_PICTURE
    assert 1.05 * needed <= (settings.decoder.memory_fraction or 0) * card


@pytest.mark.parametrize("name", CARDS)
def test_the_shares_and_contexts_fit_the_card(name: str) -> None:
    settings, card = load(name), CARDS[name]
    stages = [settings.sampler, settings.decoder]
    assert settings.encoder.num_gpus == 0 and sum(stage.num_gpus for stage in stages) <= 1
    taken = sum((stage.memory_fraction or 1) * card + CONTEXT for stage in stages)
    assert taken <= 0.98 * card, "some is left for the display and what else uses the card"
