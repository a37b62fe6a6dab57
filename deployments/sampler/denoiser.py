"""The transformer on its device: it makes samples of stored states, and steps them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deployments.clip import LatentShape
from deployments.errors import TransientError, WorkerError
from deployments.messages import VideoSpec
from deployments.mochi.block import Rope
from deployments.mochi.denoise import Sample, denoise_step, rope_tables, start_sample
from deployments.replica.device_check import check_arithmetic
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

    def step(self, samples: Sequence[Sample]) -> list[Sample | WorkerError]:
        """One step of a batch; returns when the device has done it, so that progress is true and a stop is prompt.

        Returns:
            Each sample one step on, or TransientError `non_finite_latents` for one whose latents hold a NaN or an
            infinity from this step on: the others of the batch have no part in it.

        Raises:
            TransientError: `device_broken`: there was such a sample, and the device cannot multiply.
        """
        begun = time.perf_counter()
        stepped = denoise_step(self._transformer, samples)
        finite = finite_when_done([sample.latents for sample in stepped])
        if not all(finite):
            check_arithmetic(self._device)
        time.sleep(max(0.0, self._min_step_s - (time.perf_counter() - begun)))
        return [sample if good else _non_finite(sample) for sample, good in zip(stepped, finite, strict=True)]

    def warm_up(self, model: ModelSettings) -> None:
        """One guided step of the smallest video of the model."""
        config = self._transformer.config
        spec = VideoSpec("", "", model.width.minimum, model.height.minimum, model.num_frames.minimum, 1, 2, 2.0, seed=0)
        zeros = torch.zeros(model.max_sequence_length, config.text_embed_dim)
        mask = torch.arange(model.max_sequence_length) < 1
        embeds = {"prompt_embeds": zeros, "prompt_mask": mask, "negative_embeds": zeros, "negative_mask": mask}
        rope = rope_tables(self._transformer, spec.clip.latents)
        denoise_step(self._transformer, [start_sample(self._transformer, spec, embeds, rope)])


def finite_when_done(latents: Sequence[Tensor]) -> list[bool]:
    """Wait until their device has done all its work; then whether each tensor holds numbers only.

    The answers are on their way to the host before the wait begins, so they cost no second one.
    """
    flags = torch.stack([torch.isfinite(each).all() for each in latents])
    if flags.device.type != "cuda":
        return flags.tolist()
    on_host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    on_host.copy_(flags, non_blocking=True)
    torch.cuda.synchronize(flags.device)
    return on_host.tolist()


def _non_finite(sample: Sample) -> TransientError:
    what = f"sampling gave NaN or infinity in step {sample.step} of {sample.num_steps}"
    return TransientError("non_finite_latents", what)
