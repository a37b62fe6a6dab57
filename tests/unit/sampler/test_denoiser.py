"""The transformer on its device: how states become samples, and which rotary tables are kept."""

from typing import Any

import pytest
import torch

from deployments.mochi.denoise import Sample, initial_noise
from deployments.mochi.loading import load_transformer
from deployments.sampler.denoiser import Denoiser
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
    assert [stepped.step for stepped in denoiser.step([sample])] == [3]


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
