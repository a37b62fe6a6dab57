"""Samples of zeros, to warm up with and to measure by."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from deployments.clip import LatentShape
from deployments.mochi.denoise import Sample, condition, rope_tables, sigma_schedule

if TYPE_CHECKING:
    from diffusers import MochiTransformer3DModel


def probe_sample(transformer: "MochiTransformer3DModel", shape: LatentShape, text_tokens: int) -> Sample:
    """A guided sample of zeros, with prompts of full length."""
    device = transformer.proj_out.weight.device
    embeds = torch.zeros(text_tokens, transformer.config.text_embed_dim)
    text = condition(transformer, embeds, torch.ones(text_tokens, dtype=torch.bool))
    return Sample(
        latents=torch.zeros(shape, device=device),
        step=0,
        sigmas=sigma_schedule(2).to(device),
        guidance_scale=2.0,
        prompt=text,
        negative=text,
        rope=rope_tables(transformer, shape),
    )


def probe_batches(
    transformer: "MochiTransformer3DModel", shape: LatentShape, text_tokens: int
) -> Iterator[list[Sample]]:
    """Batches of 2, 1 and 3 rows, whose texts have full length or none: after a step of each, all is compiled."""
    guided = probe_sample(transformer, shape, text_tokens)
    unguided = replace(guided, guidance_scale=1.0)
    yield [guided]
    yield [unguided]
    yield [unguided, replace(guided, negative=replace(guided.negative, length=0))]
