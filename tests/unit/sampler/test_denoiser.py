"""The transformer on its device: how states become samples, and which rotary tables are kept."""

from typing import Any

import pytest
import torch

from deployments.errors import TransientError
from deployments.mochi.denoise import Sample, initial_noise
from deployments.mochi.loading import load_transformer
from deployments.sampler.denoiser import Denoiser, finite_when_done
from deployments.sampler.state import SampleState
from tests.support.workers.fakes import SHAPES, spec


@pytest.fixture(scope="module")
def transformer() -> Any:
    return load_transformer(SHAPES, "float32", torch.device("cpu"))


@pytest.fixture
def denoiser(transformer: Any) -> Denoiser:
    return Denoiser(transformer, min_step_s=0)


def state(width: int = 32, step: int = 0) -> SampleState:
    video = spec(width=width, height=32, num_frames=7, num_inference_steps=4)
    mask = torch.arange(16) < 5
    embeds = {"prompt_embeds": torch.ones(16, 96), "prompt_mask": mask}
    embeds |= {"negative_embeds": torch.zeros(16, 96), "negative_mask": mask}
    return SampleState(video, "revision", "float32", step, initial_noise(video) + step, embeds)


@torch.no_grad()
def test_a_sample_is_what_its_state_says(denoiser: Denoiser) -> None:
    begun = state(step=2)
    sample = denoiser.prepare(begun, [])
    assert torch.equal(sample.latents, begun.latents)
    assert (sample.step, sample.num_steps, sample.guidance_scale) == (2, 4, begun.spec.guidance_scale)
    (stepped,) = denoiser.step([sample])
    assert isinstance(stepped, Sample) and stepped.step == 3


@torch.no_grad()
def test_samples_of_one_shape_share_their_tables(denoiser: Denoiser) -> None:
    first = denoiser.prepare(state(), [])
    assert denoiser.prepare(state(step=1), [first]).rope is first.rope


@torch.no_grad()
@pytest.mark.parametrize("in_loop", [False, True])
def test_tables_of_shapes_without_samples_are_dropped_for_new_ones(denoiser: Denoiser, in_loop: bool) -> None:
    first = denoiser.prepare(state(), [])
    others: list[Sample] = [first] if in_loop else []
    denoiser.prepare(state(width=48), others)
    assert (denoiser.prepare(state(), others).rope is first.rope) == in_loop


@torch.no_grad()
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_that_ceases_to_be_numbers_fails_in_that_step_and_alone(denoiser: Denoiser, bad: float) -> None:
    good, odd = denoiser.prepare(state(), []), denoiser.prepare(state(step=1), [])
    alone = denoiser.step([good, odd])
    odd.latents[3, 1, 2, 2] = bad
    stepped, error = denoiser.step([good, odd])
    assert isinstance(stepped, Sample) and isinstance(alone[0], Sample)
    assert torch.equal(stepped.latents, alone[0].latents)
    assert isinstance(error, TransientError) and error.code == "non_finite_latents"
    assert "in step 2 of 4" in error.message


def test_each_tensor_is_told_whether_it_holds_numbers() -> None:
    tensors = [torch.zeros(2, 3), torch.tensor([[1.0, float("nan"), 0.0]] * 2), torch.full((2, 3), 3e38)]
    assert finite_when_done(tensors) == [True, False, True]
