"""The mathematics of sampling: schedule, noise, and one denoising step of a batch of samples.

Free functions on plain state. A `Sample` is all that a half-made video is. Samples at different steps, with different
guidance and prompts, share a batch as long as their latents have the same shape and they the same LoRA.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.clip import LatentShape
from deployments.messages import LoraChoice, VideoSpec
from deployments.mochi.block import AttendedRow, Rope, RunBlock, joint_mask, run_block
from deployments.mochi.reuse import PassReuse, Residual
from deployments.step_rules import (
    DEFAULT_RULES,
    THRESHOLD_NOISE,
    PlannedStep,
    StepPlan,
    StepRules,
    linear_steps,
    rising_sigmas,
    step_plan,
)

if TYPE_CHECKING:
    from diffusers import MochiTransformer3DModel
    from diffusers.models.normalization import AdaLayerNormContinuous

TRAIN_TIMESTEPS = 1000  # of sigma 1, in the transformer's unit of time
ROPE_AREA = 192 * 192  # pixels, to which the rotary embedding scales every picture


@dataclass(frozen=True, slots=True)
class TextConditioning:
    """What the transformer needs of one prompt, computed once for a request."""

    caption: Tensor  # [L, D'] text tokens after `caption_proj`, model dtype
    pooled: Tensor  # [D] pooled prompt, model dtype
    length: int  # valid tokens; the rest of L is padding


@dataclass(frozen=True, slots=True)
class Sample:
    """A video between two denoising steps."""

    latents: Tensor  # [12, T, H/8, W/8] fp32
    step: int  # denoising steps done
    sigmas: Tensor
    """[N + 1] fp32, 0 (noise) to 1 (video); on the device of the latents, so that a step copies nothing between host
    and device."""
    guidance_scale: float  # 1.0 runs without the negative prompt, as the reference pipeline does
    prompt: TextConditioning
    negative: TextConditioning
    rope: Rope  # of the shape of the latents; samples of one shape share it
    rules: StepRules = DEFAULT_RULES  # how its steps are computed
    blocks: int = 1  # of the transformer
    residual: Residual | None = None
    """Of each row of the last full step; None unless the next step reuses it. Far too large to be stored: a sample goes
    on elsewhere only from a step that needs none."""
    lora: LoraChoice | None = None  # that the transformer must have in place whenever the sample is stepped

    @property
    def num_steps(self) -> int:
        return self.sigmas.shape[0] - 1

    @property
    def done(self) -> bool:
        return self.step >= self.num_steps

    @property
    def plan(self) -> StepPlan:
        """Of all its steps."""
        return step_plan(self.num_steps, self.guidance_scale, self.rules)

    @property
    def next_step(self) -> PlannedStep:
        """What its next step runs. Raises IndexError if it is done."""
        return self.plan.steps[self.step]

    @property
    def cfg_rows(self) -> int:
        """Rows of its next step: 2 with guidance (classifier-free: with and without the prompt), 1 without."""
        return self.next_step.rows

    @property
    def guided(self) -> bool:
        """Whether its next step runs the negative prompt too."""
        return self.cfg_rows > 1

    @property
    def block_rows(self) -> int:
        """Rows of its next step, each counted once for each block that it goes through."""
        return self.cfg_rows * (1 if self.next_step.reuses else self.blocks)

    @property
    def resumable(self) -> bool:
        """Whether latents and step are all that its next step needs."""
        return self.plan.resumable(self.step)


def sigma_schedule(num_steps: int, threshold_noise: float = THRESHOLD_NOISE, linear_steps: int | None = None) -> Tensor:
    """Mochi's linear-quadratic schedule: [num_steps + 1] fp32 on the CPU, sigma from 0 to 1.

    The first `linear_steps` (default: half) go evenly up to `threshold_noise`, the rest quadratically up to 1. The
    published formula (`rising_sigmas`) runs from 1 to 0 in fp64 and diffusers inverts it after rounding to fp32; the
    same roundings are made here, so that every value equals the reference's.

    Raises:
        ValueError: fewer than 2 steps, or linear_steps outside 1 to num_steps - 1.
    """
    linear = num_steps // 2 if linear_steps is None else linear_steps
    if not 1 <= linear < num_steps:
        raise ValueError(
            f"num_steps is {num_steps} and linear_steps {linear}; allowed are num_steps >= 2 and "
            f"1 <= linear_steps < num_steps"
        )
    falling = [1.0 - x for x in rising_sigmas(num_steps, threshold_noise, linear)]
    sigmas = 1.0 - torch.from_numpy(np.array(falling).astype(np.float32))
    return torch.cat([sigmas, torch.ones(1)])


def initial_noise(spec: VideoSpec) -> Tensor:
    """[12, T, H/8, W/8] fp32 on the CPU, from the seed: the same on every device, and the reference pipeline's
    draw with ``torch.Generator().manual_seed(seed)``."""
    generator = torch.Generator().manual_seed(spec.seed)
    return torch.randn((1, *spec.clip.latents), generator=generator, dtype=torch.float32)[0]


def condition(transformer: "MochiTransformer3DModel", embeds: Tensor, mask: Tensor) -> TextConditioning:
    """Project and pool one encoded prompt.

    Args:
        embeds: [L, D] text embeddings.
        mask: [L] bool on the CPU, true for the valid tokens, which come first.

    Raises:
        ValueError: the mask has a hole; lengths would then say something else than the mask.
    """
    length = int(mask.sum())
    if not bool(mask[:length].all()):
        raise ValueError("prompt mask must be true for the first tokens and false behind; the tokenizer pads left")
    weight = transformer.time_embed.caption_proj.weight
    batch = embeds.to(weight.device, weight.dtype)[None]
    pooled = transformer.time_embed.pooler(batch, mask.to(weight.device)[None])
    return TextConditioning(transformer.time_embed.caption_proj(batch)[0], pooled[0], length)


def start_sample(
    transformer: "MochiTransformer3DModel", spec: VideoSpec, embeds: Mapping[str, Tensor], rope: Rope
) -> Sample:
    """A sample before its first step, on the transformer's device; its LoRA must be in place.

    Args:
        embeds: `prompt_embeds` and `negative_embeds` [L, D], `prompt_mask` and `negative_mask` [L] bool, on the CPU.
    """
    device = transformer.proj_out.weight.device
    steps, rules = spec.num_inference_steps, spec.rules
    return Sample(
        latents=initial_noise(spec).to(device),
        step=0,
        sigmas=sigma_schedule(steps, rules.threshold_noise, linear_steps(steps, rules.linear_part)).to(device),
        guidance_scale=spec.guidance_scale,
        prompt=condition(transformer, embeds["prompt_embeds"], embeds["prompt_mask"]),
        negative=condition(transformer, embeds["negative_embeds"], embeds["negative_mask"]),
        rope=rope,
        rules=rules,
        blocks=len(transformer.transformer_blocks),
        lora=spec.lora_choice,
    )


def rope_tables(transformer: "MochiTransformer3DModel", shape: LatentShape) -> Rope:
    """cos + i sin for latents of `shape`, [T x H/16 x W/16, heads, head_dim / 2] complex64.

    The formula is diffusers' `MochiRoPE`, always in fp32: learned frequencies times (t, y, x), where y and x are
    scaled so that the picture has the area of 192 x 192.
    """
    _, frames, height, width = shape
    patch = transformer.config.patch_size
    frequencies = transformer.pos_frequencies.float()
    positions = _positions(frames, height // patch, width // patch, frequencies.device)
    angles = torch.einsum("nd,dhf->nhf", positions, frequencies)
    return torch.complex(angles.cos(), angles.sin())


def _positions(frames: int, height: int, width: int, device: torch.device) -> Tensor:
    """(t, y, x) of every token, [T x h x w, 3] fp32."""
    scale = (ROPE_AREA / (height * width)) ** 0.5
    axes = [torch.arange(frames, device=device, dtype=torch.float32)]
    for size in (height, width):
        edges = torch.linspace(-size * scale / 2, size * scale / 2, size + 1, device=device)
        axes.append((edges[:-1] + edges[1:]) / 2)
    return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).view(-1, 3)


def denoise_step(
    transformer: "MochiTransformer3DModel",
    samples: Sequence[Sample],
    block: RunBlock = run_block,
    rows_at_once: int | None = None,
) -> list[Sample]:
    """Advance every sample by one Euler step: x += (sigma[i+1] - sigma[i]) * v, all in fp32.

    One forward pass for all samples, those that are guided in this step with two rows: v = v_negative +
    guidance_scale * (v_prompt - v_negative). Rows of samples whose step reuses the blocks leave the pass after the
    first one. Nothing here waits for the device. The samples' LoRA must be in place (`loras.Loras.applied`).

    Args:
        block: what runs a transformer block; `CompiledBlock` is another choice.
        rows_at_once: of one forward pass at most; more rows go in several, one after the other, in the memory of so
            many. None: all in one.

    Raises:
        ValueError: no samples, samples of different shapes or LoRAs, one that is done, or one that lacks what it is to
            reuse.
    """
    _check_batch(samples)
    guided = [sample for sample in samples if sample.guided]
    rows = [_Row(sample, sample.negative, 0, kept_with=2) for sample in guided]
    rows += [_Row(sample, sample.prompt, -1, kept_with=1) for sample in samples]
    size = rows_at_once or len(rows)
    outs: list[_RowOut] = []
    for begin in range(0, len(rows), size):
        outs += _run_rows(transformer, rows[begin : begin + size], block)
    negatives = iter(outs[: len(guided)])
    return [
        _advance(sample, [next(negatives), own] if sample.guided else [own])
        for sample, own in zip(samples, outs[len(guided) :], strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a step: a sample with one of its prompts."""

    sample: Sample
    text: TextConditioning
    place: int  # in the sample's residual
    kept_with: int  # it is kept where the step keeps so many rows or more

    @property
    def held(self) -> Tensor | None:
        """What it reuses in place of the blocks after the first one."""
        sample = self.sample
        return sample.residual[self.place] if sample.residual and sample.next_step.reuses else None

    @property
    def kept(self) -> bool:
        """Whether a later step reuses what this one computes of it."""
        return self.sample.plan.rows_kept(self.sample.step) >= self.kept_with


@dataclass(frozen=True, slots=True)
class _RowOut:
    velocity: Tensor  # [12, T, H/8, W/8] fp32
    residual: Tensor | None  # what later steps reuse of it


def _run_rows(transformer: "MochiTransformer3DModel", rows: Sequence[_Row], block: RunBlock) -> list[_RowOut]:
    """One forward pass."""
    held, kept = [row.held for row in rows], [row.kept for row in rows]
    reuse = PassReuse(held, kept) if any(kept) or any(each is not None for each in held) else None
    velocity = predict_velocity(
        transformer,
        torch.stack([row.sample.latents for row in rows]),
        torch.stack([row.sample.sigmas[row.sample.step] * TRAIN_TIMESTEPS for row in rows]),
        [row.text for row in rows],
        rows[0].sample.rope,
        block,
        reuse,
        [row.sample.rules.attention == "fp8" for row in rows],
    ).float()
    residuals = [None] * len(rows) if reuse is None else reuse.residuals
    return [_RowOut(*out) for out in zip(velocity.unbind(), residuals, strict=True)]


def _check_batch(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ValueError("a batch needs at least one sample")
    if len({sample.latents.shape for sample in samples}) > 1:
        raise ValueError("samples of one batch must have latents of the same shape")
    if len({sample.lora for sample in samples}) > 1:
        raise ValueError("samples of one batch must have the same LoRA, with the same scale")
    if any(sample.done for sample in samples):
        raise ValueError("a sample of the batch has no steps left")
    if any(sample.next_step.reuses and sample.residual is None for sample in samples):
        raise ValueError("a sample of the batch was resumed at a step that is to reuse the blocks of the one before")


def _advance(sample: Sample, rows: Sequence[_RowOut]) -> Sample:
    """rows: of the negative prompt if it was run, and of the prompt."""
    velocity = rows[-1].velocity
    if len(rows) > 1:
        velocity = rows[0].velocity + sample.guidance_scale * (velocity - rows[0].velocity)
    width = sample.sigmas[sample.step + 1] - sample.sigmas[sample.step]
    residual = tuple(row.residual for row in rows if row.residual is not None) or None
    return replace(sample, latents=sample.latents + width * velocity, step=sample.step + 1, residual=residual)


def predict_velocity(
    transformer: "MochiTransformer3DModel",
    latents: Tensor,
    timesteps: Tensor,
    texts: Sequence[TextConditioning],
    rope: Rope,
    block: RunBlock = run_block,
    reuse: PassReuse | None = None,
    fp8: Sequence[bool] = (),
) -> Tensor:
    """The transformer's forward pass without what is constant for a request.

    Equals ``MochiTransformer3DModel.forward`` but for rounding. Text padding beyond the batch's longest prompt is
    cut off: no video token ever sees it.

    Args:
        latents: [B, 12, T, h, w] fp32.
        timesteps: [B] fp32, 0 to 1000.
        texts: B conditionings.
        rope: see `rope_tables`.
        block: see `denoise_step`.
        reuse: which rows go through the first block alone; None if all go through all. It is given what is to be kept.
        fp8: of each row, whether it is attended in 8 bits; by default none is.

    Returns:
        [B, 12, T, h, w] in the model's dtype.
    """
    dtype = transformer.proj_out.weight.dtype
    rows = [AttendedRow(text.length, each) for text, each in zip(texts, fp8 or [False] * len(texts), strict=True)]
    longest = max(1, *(row.text for row in rows))
    captions = torch.stack([text.caption[:longest] for text in texts])
    embedding = _time_embedding(transformer, timesteps, dtype) + torch.stack([text.pooled for text in texts])
    activated = F.silu(embedding)
    tokens = _patch(transformer, latents.to(dtype))
    mask = joint_mask(rows, tokens.shape[1], longest, tokens.device)
    first, *others = transformer.transformer_blocks
    tokens, captions = block(first, tokens, captions, activated, rows, mask, rope)
    early = None
    if reuse is not None:
        early = tokens
        tokens, captions, activated = (reuse.full_rows(each) for each in (tokens, captions, activated))
        rows, mask = reuse.full(rows), mask if mask is None else reuse.full_rows(mask)
    for weights in others if rows else ():
        tokens, captions = block(weights, tokens, captions, activated, rows, mask, rope)
    if reuse is not None and early is not None:
        tokens = reuse.join(early, tokens)
    tokens = transformer.proj_out(final_norm(transformer.norm_out, tokens, embedding))
    return _unpatch(tokens, latents.shape, transformer.config.patch_size)


def final_norm(norm_out: "AdaLayerNormContinuous", tokens: Tensor, embedding: Tensor) -> Tensor:
    """The norm before the projection to latents, scaled and shifted by the time and prompt embedding, in fp32.

    As in the authors' code, where autocast keeps it in fp32; the module's own forward rounds each of its steps to the
    dtype of the tokens. In fp32 the two are equal bit for bit.

    Args:
        tokens: [B, N, D].
        embedding: [B, D].

    Returns:
        [B, N, D] in the dtype of the tokens.
    """
    scale, shift = norm_out.linear(norm_out.silu(embedding)).float()[:, None].chunk(2, dim=-1)
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=norm_out.norm.eps)
    return normed.mul_(1 + scale).add_(shift).to(tokens.dtype)


def _time_embedding(transformer: "MochiTransformer3DModel", timesteps: Tensor, dtype: torch.dtype) -> Tensor:
    projected = transformer.time_embed.time_proj(timesteps)
    embedding: Tensor = transformer.time_embed.timestep_embedder(projected.to(dtype))
    return embedding


def _patch(transformer: "MochiTransformer3DModel", latents: Tensor) -> Tensor:
    """[B, C, T, h, w] to [B, T x h/p x w/p, D]."""
    frames = latents.permute(0, 2, 1, 3, 4).flatten(0, 1)
    tokens: Tensor = transformer.patch_embed(frames)
    return tokens.reshape(latents.shape[0], -1, tokens.shape[-1])


def _unpatch(tokens: Tensor, shape: torch.Size, patch: int) -> Tensor:
    """[B, T x h/p x w/p, p x p x C] to [B, C, T, h, w]."""
    batch, _, frames, height, width = shape
    grid = tokens.reshape(batch, frames, height // patch, width // patch, patch, patch, -1)
    return grid.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, height, width)
