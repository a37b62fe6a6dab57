"""Sampling mathematics against diffusers' own pipeline and scheduler."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from deployments.messages import VideoSpec
from deployments.mochi.denoise import (
    Sample,
    condition,
    denoise_step,
    initial_noise,
    rope_tables,
    sigma_schedule,
    start_sample,
)
from deployments.mochi.weights.loading import load_transformer
from tests.support.workers.fakes import SHAPES, spec
from tests.support.workers.stock import stock_latents, stock_pipeline

# diffusers asks for fp32 autocast on the CPU, which torch refuses with a warning
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")

RED = spec("a red circle moving right", num_inference_steps=10, guidance_scale=4.5, seed=1)
BLUE = spec("a blue square", negative_prompt="red", num_inference_steps=6, guidance_scale=3.0, seed=2)
UNGUIDED = spec("a green triangle moving up", num_inference_steps=7, guidance_scale=1.0, seed=3)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return stock_pipeline()


@pytest.fixture(scope="module")
def transformer() -> Any:
    return load_transformer(SHAPES, "float32", torch.device("cpu"))


@pytest.fixture(autouse=True)
def without_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def first_sample(pipeline: Any, transformer: Any, video: VideoSpec) -> Sample:
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(
        video.prompt, video.negative_prompt, max_sequence_length=16
    )
    tensors = {
        "prompt_embeds": embeds[0],
        "prompt_mask": mask[0],
        "negative_embeds": negative[0],
        "negative_mask": negative_mask[0],
    }
    return start_sample(transformer, video, tensors, rope_tables(transformer, video.clip.latents))


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("steps", [2, 3, 8, 20, 64, 200])
def test_schedule_equals_the_scheduler(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(sigmas=linear_quadratic_schedule(steps, 0.025))
    sigmas = sigma_schedule(steps)
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, scheduler.sigmas)
    assert torch.equal(sigmas[:-1] * 1000, scheduler.timesteps)


def test_schedule_of_the_distilled_model() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(sigmas=linear_quadratic_schedule(8, 0.1, 6))
    assert torch.equal(sigma_schedule(8, threshold_noise=0.1, linear_steps=6), scheduler.sigmas)


@given(st.integers(2, 300))
def test_schedule_rises_from_noise_to_video(steps: int) -> None:
    sigmas = sigma_schedule(steps)
    assert sigmas.shape == (steps + 1,)
    assert sigmas[0] == 0 and sigmas[-1] == 1
    assert bool((sigmas.diff() > 0).all())


@pytest.mark.parametrize(("steps", "linear"), [(1, None), (0, None), (8, 8), (8, 0)])
def test_impossible_schedules_are_refused(steps: int, linear: int | None) -> None:
    with pytest.raises(ValueError, match="num_steps >= 2"):
        sigma_schedule(steps, linear_steps=linear)


def test_latent_shape() -> None:
    assert spec(width=848, height=480, num_frames=163).clip.latents == (12, 28, 60, 106)
    assert spec(width=32, height=64, num_frames=7).clip.latents == (12, 2, 8, 4)


def test_noise_is_the_pipelines(pipeline: Any) -> None:
    generator = torch.Generator().manual_seed(RED.seed)
    drawn = pipeline.prepare_latents(1, 12, 64, 64, 13, torch.float32, torch.device("cpu"), generator)
    assert torch.equal(initial_noise(RED), drawn[0])


def test_staggered_samples_equal_the_pipeline_alone(pipeline: Any, transformer: Any) -> None:
    """Three samples that differ in everything but shape; the second and third join while the first is under way."""
    videos = [RED, BLUE, UNGUIDED]
    samples = [first_sample(pipeline, transformer, video) for video in videos]
    for _ in range(3):
        (samples[0],) = denoise_step(transformer, samples[:1])
    while not all(sample.done for sample in samples):
        alive = [i for i, sample in enumerate(samples) if not sample.done]
        for i, advanced in zip(alive, denoise_step(transformer, [samples[i] for i in alive]), strict=True):
            samples[i] = advanced
    for video, final in zip(videos, samples, strict=True):
        assert final.latents.dtype == torch.float32
        assert relative_error(final.latents, stock_latents(pipeline, video)) <= 1e-4


def test_other_sizes_equal_the_pipeline(pipeline: Any, transformer: Any) -> None:
    video = spec(width=96, height=48, num_frames=7, num_inference_steps=3)
    sample = first_sample(pipeline, transformer, video)
    while not sample.done:
        (sample,) = denoise_step(transformer, [sample])
    assert relative_error(sample.latents, stock_latents(pipeline, video)) <= 1e-4


@pytest.mark.parametrize("shape", [(12, 5, 8, 8), (12, 3, 6, 14)])
def test_rope_is_the_models(transformer: Any, shape: tuple[int, int, int, int]) -> None:
    wanted = transformer.rope(
        transformer.pos_frequencies, shape[1], shape[2] // 2, shape[3] // 2, transformer.device, torch.float32
    )
    table = rope_tables(transformer, shape)
    assert torch.equal(table.real, wanted[0]) and torch.equal(table.imag, wanted[1])


def test_a_step_never_waits_for_the_device(pipeline: Any, transformer: Any) -> None:
    """Fake tensors have no values: whatever needs one on the host raises, as diffusers' own processor does."""
    samples = [first_sample(pipeline, transformer, RED), first_sample(pipeline, transformer, UNGUIDED)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert [stepped.step for stepped in denoise_step(transformer, samples)] == [1, 1]


def test_the_stock_processor_does_wait(pipeline: Any) -> None:
    width = pipeline.transformer.config.text_embed_dim
    latents, embeds = torch.randn(1, 12, 2, 8, 8), torch.randn(1, 16, width)
    mask = torch.arange(16)[None] < 5
    assert isinstance(pipeline.transformer.transformer_blocks[0].attn1.processor, MochiAttnProcessor2_0)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DynamicOutputShapeException):
        pipeline.transformer(latents, embeds, torch.tensor([5.0]), mask)


def test_bad_batches_are_refused(pipeline: Any, transformer: Any) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        denoise_step(transformer, [])
    small, wide = (first_sample(pipeline, transformer, spec(width=w, num_inference_steps=2)) for w in (32, 64))
    with pytest.raises(ValueError, match="same shape"):
        denoise_step(transformer, [small, wide])
    for _ in range(2):
        (small,) = denoise_step(transformer, [small])
    with pytest.raises(ValueError, match="no steps left"):
        denoise_step(transformer, [small])


def test_padding_on_the_left_is_refused(transformer: Any) -> None:
    with pytest.raises(ValueError, match="pads left"):
        condition(transformer, torch.zeros(16, 64), torch.arange(16) > 10)
