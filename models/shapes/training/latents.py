"""The latents of drawn clips and their prompts: what the transformer is trained on, made once and kept."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor

from models.shapes.scenes.draw import draw_clip
from models.shapes.scenes.prompt import write_prompt
from models.shapes.scenes.scene import draw_scene, draw_tracks
from models.shapes.training.optimise import save, say

ENCODED_TOGETHER = 8
PROMPTS_OF_A_CLIP = 4


@dataclass(frozen=True, slots=True)
class Bucket:
    """Clips of one size."""

    clips: int
    height: int  # pixels
    width: int  # pixels
    frames: int
    batch: int  # clips of a training batch; batches of all buckets are about equal work

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


@dataclass(frozen=True, slots=True)
class LatentClips:
    """The clips of a bucket, encoded."""

    bucket: Bucket
    latents: Tensor  # [N, 12, T, h, w] fp16, normalised
    prompts: list[list[str]]  # N lists of ways to say the clip
    seconds: float  # that drawing and encoding them took


@torch.no_grad()
def measure_latents(vae: AutoencoderKLMochi, seed: int, clips: int, device: torch.device) -> None:
    """Write mean and standard deviation of each latent channel, over so many clips, into the autoencoder's config."""
    rng = random.Random(seed)
    latents = torch.cat([_encode(vae, [_draw(rng, 64, 64, 25)[0]], device) for _ in range(clips)])
    mean = latents.mean((0, 2, 3, 4))
    deviation = latents.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())


def encode_bucket(
    vae: AutoencoderKLMochi, bucket: Bucket, seed: int, folder: Path, device: torch.device
) -> LatentClips:
    """Draw and encode the clips of a bucket, or load those of a run before."""
    file = folder / f"latents-{bucket.name}.pt"
    if not file.exists():
        say(f"encoding {bucket.clips} clips of {bucket.name}")
        begun = time.monotonic()
        latents, prompts = _encode_clips(vae, bucket, random.Random(f"{seed} {bucket.name}"), device)
        save(file, {"latents": latents, "prompts": prompts, "seconds": time.monotonic() - begun})
    state = torch.load(file, weights_only=True)
    return LatentClips(bucket, state["latents"], state["prompts"], state["seconds"])


@torch.no_grad()
def _encode_clips(
    vae: AutoencoderKLMochi, bucket: Bucket, rng: random.Random, device: torch.device
) -> tuple[Tensor, list[list[str]]]:
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    deviation = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    latents = []
    prompts = []
    for first in range(0, bucket.clips, ENCODED_TOGETHER):
        count = min(ENCODED_TOGETHER, bucket.clips - first)
        drawn = [_draw(rng, bucket.height, bucket.width, bucket.frames) for _ in range(count)]
        encoded = _encode(vae, [clip for clip, _ in drawn], device)
        latents.append(((encoded - mean) / deviation).half())
        prompts += [said for _, said in drawn]
    return torch.cat(latents), prompts


def _draw(rng: random.Random, height: int, width: int, frames: int) -> tuple[Tensor, list[str]]:
    scene = draw_scene(rng, "train")
    tracks = draw_tracks(rng, scene, width / height)
    prompts = [write_prompt(rng, scene) for _ in range(PROMPTS_OF_A_CLIP)]
    return draw_clip(scene, tracks, height, width, frames), prompts


def _encode(vae: AutoencoderKLMochi, clips: list[Tensor], device: torch.device) -> Tensor:
    """[B, 12, T, h, w] fp32 on the CPU: the most likely latents."""
    latents: Tensor = vae.encode(torch.stack(clips).to(device)).latent_dist.mode()
    return latents.float().cpu()
