"""Mochi with seeded random weights, built where it runs, and a step of it in the stock way and in ours.

Time and memory do not depend on what the weights are, so no 30 GB need be fetched. The scales are those of a fresh
network: activations stay near one and nothing overflows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deployments.clip import LatentShape
from deployments.messages import VideoSpec
from deployments.mochi.block import RunBlock, run_block
from deployments.mochi.denoise import Sample, denoise_step, rope_tables, sigma_schedule, start_sample

GUIDANCE = 4.5
TEXT_TOKENS = 256
PROMPT_LENGTH = 60
NEGATIVE_LENGTH = 1

# Differences from Mochi 1's architecture that let a CPU run all of it in a moment.
TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 3,
    "pooled_projection_dim": 24,
    "text_embed_dim": 32,
    "time_embed_dim": 16,
    "max_sequence_length": 8,
}
TINY_VAE: dict[str, Any] = {
    "encoder_block_out_channels": (32, 32, 32, 32),
    "decoder_block_out_channels": (32, 32, 32, 32),
    "layers_per_block": (0, 1, 1, 1, 1),
}

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Stands in for T5's output. On the CPU."""

    embeds: Tensor  # [L, 4096] normal, zero for the padding
    mask: Tensor  # [L] bool


def random_transformer(device: torch.device, dtype: torch.dtype, seed: int = 0, **config: Any) -> Any:
    """`MochiTransformer3DModel` with random weights; `config` are the differences from Mochi 1's architecture."""
    return filled(meta_transformer(**config), device, dtype, seed)


def random_vae(device: torch.device, dtype: torch.dtype, seed: int = 0, **config: Any) -> Any:
    """`AutoencoderKLMochi` without its encoder half, with random weights."""
    return filled(meta_vae(**config), device, dtype, seed)


def meta_transformer(**config: Any) -> Any:
    """The architecture without memory, for counting."""
    from diffusers import MochiTransformer3DModel

    with torch.device("meta"):
        return MochiTransformer3DModel(**config).eval().requires_grad_(False)


def meta_vae(**config: Any) -> Any:
    """The decoder half without memory, for counting."""
    from diffusers import AutoencoderKLMochi

    with torch.device("meta"):
        vae = AutoencoderKLMochi(**config)
    vae.encoder = None
    return vae.eval().requires_grad_(False)


def filled(module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """Give a module of the meta device memory on `device`, and every parameter its values."""
    if any(True for _ in module.buffers()):
        raise ValueError(f"{type(module).__name__} has buffers, whose values only its constructor knows")
    nn.Module.to(module, dtype).to_empty(device=device)  # diffusers' own `to` warns of a list that is empty here
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        _fill(name, parameter.data, generator)
    return module


def _fill(name: str, values: Tensor, generator: torch.Generator) -> None:
    """Matrices and kernels normal with variance 1 / fan-in, norm weights one, biases zero."""
    if values.ndim > 1:
        fan_in = values[0].numel()
        values.normal_(0, 0.02 if name == "pos_frequencies" else fan_in**-0.5, generator=generator)
    else:
        values.fill_(1.0 if name.endswith("weight") else 0.0)


def clip_spec(width: int, height: int, frames: int, steps: int, seed: int = 0) -> VideoSpec:
    return VideoSpec("", "", width, height, frames, 30, steps, GUIDANCE, seed=seed)


def random_prompt(dim: int, length: int, tokens: int = TEXT_TOKENS, seed: int = 0) -> Prompt:
    """[tokens, dim] of which `length` are valid."""
    mask = torch.arange(tokens) < length
    embeds = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(seed))
    return Prompt(embeds * mask[:, None], mask)


def our_sample(transformer: Any, spec: VideoSpec, prompt: Prompt, negative: Prompt) -> Sample:
    """A sample before its first step, as the sampler starts it."""
    return start_sample(transformer, spec, embeddings(prompt, negative), rope_tables(transformer, spec.clip.latents))


def embeddings(prompt: Prompt, negative: Prompt) -> dict[str, Tensor]:
    """As the text encoder leaves them."""
    return {
        "prompt_embeds": prompt.embeds,
        "prompt_mask": prompt.mask,
        "negative_embeds": negative.embeds,
        "negative_mask": negative.mask,
    }


def our_step(transformer: Any, samples: list[Sample], block: RunBlock = run_block) -> Step:
    """A step of `samples` that can be repeated: they stay what they were."""

    @torch.no_grad()
    def step() -> list[Tensor]:
        return [stepped.latents for stepped in denoise_step(transformer, samples, block)]

    return step


def stock_step(transformer: Any, sample: Sample, prompt: Prompt, negative: Prompt) -> Step:
    """The same step as `MochiPipeline` does it: latents and timestep in the model's dtype, text padded, all text
    layers run again, and diffusers' own attention processors, which ask the device for the prompts' lengths."""
    device = transformer.device
    dtype = transformer.dtype
    latents = sample.latents[None].to(dtype)
    embeds = torch.stack([negative.embeds, prompt.embeds]).to(device, dtype)
    mask = torch.stack([negative.mask, prompt.mask]).to(device)
    sigma = sample.sigmas[sample.step]
    next_sigma = sample.sigmas[sample.step + 1]

    @torch.no_grad()
    def step() -> Tensor:
        timestep = (sigma * 1000).expand(2).to(dtype)
        both = transformer(torch.cat([latents] * 2), embeds, timestep, mask, return_dict=False)[0].float()
        velocity = both[:1] + sample.guidance_scale * (both[1:] - both[:1])
        stepped: Tensor = (latents.float() + (next_sigma - sigma) * velocity).to(dtype)
        return stepped

    return step


def stock_pipeline(transformer: Any, vae: Any) -> Any:
    """`MochiPipeline` around the given parts, without text encoder: prompts come as embeddings."""
    from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipeline = MochiPipeline(scheduler, vae, None, None, transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_pipeline(pipeline: Any, spec: VideoSpec, prompt: Prompt, negative: Prompt) -> Tensor:
    """The pipeline's latents, [12, T, h, w]."""
    device = pipeline.transformer.device
    dtype = pipeline.transformer.dtype
    out = pipeline(
        prompt_embeds=prompt.embeds[None].to(device, dtype),
        prompt_attention_mask=prompt.mask[None].to(device),
        negative_prompt_embeds=negative.embeds[None].to(device, dtype),
        negative_prompt_attention_mask=negative.mask[None].to(device),
        height=spec.height,
        width=spec.width,
        num_frames=spec.num_frames,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator().manual_seed(spec.seed),
        output_type="latent",
    )
    latents: Tensor = out.frames[0]
    return latents


def step_constants(transformer: Any, spec: VideoSpec, prompt: Prompt, negative: Prompt) -> Step:
    """What the stock pipeline computes at every step and ours once for a request: rotary tables and text layers."""
    device = transformer.device
    dtype = transformer.dtype
    shape: LatentShape = spec.clip.latents
    embeds = torch.stack([negative.embeds, prompt.embeds]).to(device, dtype)
    mask = torch.stack([negative.mask, prompt.mask]).to(device)
    timestep = sigma_schedule(spec.num_inference_steps)[:1].to(device).expand(2).to(dtype)

    @torch.no_grad()
    def constants() -> object:
        return rope_tables(transformer, shape), transformer.time_embed(timestep, embeds, mask, hidden_dtype=dtype)

    return constants
