"""The transformer on its device: it makes samples of stored states, and steps them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from deployments.clip import LatentShape
from deployments.messages import VideoSpec
from deployments.mochi.block import Rope
from deployments.mochi.denoise import Sample, denoise_step, rope_tables, start_sample
from deployments.sampler.state import SampleState
from deployments.settings import ModelSettings

if TYPE_CHECKING:
    from diffusers import MochiTransformer3DModel


class Denoiser:
    """A transformer and the rotary tables of the shapes that are in use. Its methods run on the loop's thread.

    Args:
        transformer: on its device.
        min_step_s: seconds that a step takes at least.
    """

    def __init__(self, transformer: "MochiTransformer3DModel", min_step_s: float) -> None:
        self._transformer = transformer
        self._device = transformer.proj_out.weight.device
        self._min_step_s = min_step_s
        self._rope: dict[LatentShape, Rope] = {}

    def prepare(self, state: SampleState, others: Sequence[Sample]) -> Sample:
        """The sample of this state, on the device.

        Args:
            others: the samples in the loop; rotary tables of shapes that none of them has are dropped.
        """
        shape = state.spec.clip.latents
        if shape not in self._rope:
            in_use = {tuple(sample.latents.shape) for sample in others}
            self._rope = {kept: rope for kept, rope in self._rope.items() if kept in in_use}
            self._rope[shape] = rope_tables(self._transformer, shape)
        sample = start_sample(self._transformer, state.spec, state.embeds, self._rope[shape])
        return replace(sample, latents=state.latents.to(self._device), step=state.step)

    def step(self, samples: Sequence[Sample]) -> list[Sample]:
        """One step of a batch; returns when the device has done it, so that progress is true and a stop is prompt."""
        begun = time.perf_counter()
        stepped = denoise_step(self._transformer, samples)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        time.sleep(max(0.0, self._min_step_s - (time.perf_counter() - begun)))
        return stepped

    def warm_up(self, model: ModelSettings) -> None:
        """One guided step of the smallest video of the model."""
        config = self._transformer.config
        spec = VideoSpec("", "", model.width.minimum, model.height.minimum, model.num_frames.minimum, 1, 2, 2.0, seed=0)
        zeros = torch.zeros(model.max_sequence_length, config.text_embed_dim)
        mask = torch.arange(model.max_sequence_length) < 1
        embeds = {"prompt_embeds": zeros, "prompt_mask": mask, "negative_embeds": zeros, "negative_mask": mask}
        rope = rope_tables(self._transformer, spec.clip.latents)
        denoise_step(self._transformer, [start_sample(self._transformer, spec, embeds, rope)])
