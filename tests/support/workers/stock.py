"""diffusers' own pipeline with the included model: what our latents are compared with."""

from typing import Any

import torch
from diffusers import MochiPipeline
from torch import Tensor

from deployments.messages import VideoSpec
from tests.support.workers.fakes import SHAPES


def stock_pipeline() -> Any:
    pipeline = MochiPipeline.from_pretrained(SHAPES, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(pipeline: Any, video: VideoSpec) -> Tensor:
    """What diffusers makes of the request alone in fp32, [12, T, h, w]."""
    out = pipeline(
        video.prompt,
        video.negative_prompt,
        height=video.height,
        width=video.width,
        num_frames=video.num_frames,
        num_inference_steps=video.num_inference_steps,
        guidance_scale=video.guidance_scale,
        generator=torch.Generator().manual_seed(video.seed),
        output_type="latent",
        max_sequence_length=16,
    )
    latents: Tensor = out.frames[0]
    return latents
