"""The video autoencoder: Mochi's own class, narrow, trained on drawn clips.

First encoder and decoder together; then the decoder alone on latents with some noise in them, as a sampler leaves
them, while the latents stay what they are.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLMochi
from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiChunkedGroupNorm3D
from torch import Tensor

from models.shapes.scenes.draw import draw_clip
from models.shapes.scenes.scene import BACKGROUNDS, CLIP_FRAMES, Scene, draw_scene, draw_tracks
from models.shapes.training.optimise import Stage, group, set_rate, update

# (batch, height, width) of the training pictures: equal work, two sizes.
SIZES = ((4, 64, 64), (2, 96, 96))
FRAMES = 13
FOREGROUND_WEIGHT = 6.0
FOREGROUND_CONTRAST = 0.1
KL_WEIGHT = 2e-4
LATENT_NOISE = 0.1


@dataclass(frozen=True, slots=True)
class AutoencoderPlan:
    """steps: in all. decoder_share: the part of them that trains the decoder alone."""

    steps: int = 2600
    decoder_share: float = 0.3
    lr: float = 2e-3
    seed: int = 1


def new_autoencoder() -> AutoencoderKLMochi:
    """Random weights. No attention in the encoder: motion between neighbouring frames is all there is to see."""
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 64, 64),
        decoder_block_out_channels=(32, 32, 64, 96),
        layers_per_block=(0, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
    )


def train_autoencoder(plan: AutoencoderPlan, folder: Path, device: torch.device) -> tuple[AutoencoderKLMochi, Stage]:
    """Train, or go on where a stopped run was. Returns the autoencoder, and the stage for its log."""
    torch.manual_seed(plan.seed)
    vae = new_autoencoder().to(device)
    _join_chunks(vae)
    optimiser = torch.optim.AdamW([group(vae.parameters(), plan.lr, 1e-4)], betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(plan.seed)
    stage = Stage("autoencoder", folder, plan, generator, vae=vae, optimiser=optimiser)
    together = int(plan.steps * (1 - plan.decoder_share))
    for step in stage:
        set_rate(optimiser, step, plan.steps)
        clips, weights = (tensor.to(device) for tensor in _batch(step, generator))
        loss = _joint_loss(vae, clips, weights) if step < together else _decoder_loss(vae, clips, weights)
        update(optimiser, loss, vae.parameters())
        stage.note(loss)
    return vae.eval().requires_grad_(False), stage


def _join_chunks(vae: AutoencoderKLMochi) -> None:
    """Normalise all frames in one call: the class splits them to save memory that small clips do not need."""
    for module in vae.modules():
        if isinstance(module, MochiChunkedGroupNorm3D):
            module.chunk_size = 1 << 16


def _batch(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips [B, 3, F, H, W] and the weights of their pixels [B, 1, F, H, W]."""
    count, height, width = SIZES[step % len(SIZES)]
    rng = random.Random(int(torch.randint(1 << 62, (), generator=generator)))
    drawn = [_draw(rng, height, width) for _ in range(count)]
    return torch.stack([clip for clip, _ in drawn]), torch.stack([weight for _, weight in drawn])


def _draw(rng: random.Random, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A piece of `FRAMES` frames from somewhere in a clip, and its weights."""
    scene = draw_scene(rng, "train")
    later = rng.randint(0, CLIP_FRAMES - FRAMES)
    tracks = [track.after(later) for track in draw_tracks(rng, scene)]
    clip = draw_clip(scene, tracks, height, width, FRAMES)
    return clip, _weights(clip, scene)


def _weights(clip: Tensor, scene: Scene) -> Tensor:
    """More where a figure is: it covers a tenth of the picture, and a plain mean would wash its colour out."""
    ground = torch.tensor(BACKGROUNDS[scene.background]).view(3, 1, 1, 1) * 2 - 1
    foreground = (clip - ground).abs().amax(0, keepdim=True) > FOREGROUND_CONTRAST
    return 1 + FOREGROUND_WEIGHT * foreground


def _joint_loss(vae: AutoencoderKLMochi, clips: Tensor, weights: Tensor) -> Tensor:
    """Reconstruction, and the KL divergence of the latents from a standard normal, for each of their elements."""
    posterior = vae.encode(clips).latent_dist
    latents = posterior.sample()
    divergence = posterior.kl().mean() / latents[0].numel()
    return _difference(vae.decode(latents).sample, clips, weights) + KL_WEIGHT * divergence


def _decoder_loss(vae: AutoencoderKLMochi, clips: Tensor, weights: Tensor) -> Tensor:
    with torch.no_grad():
        latents = vae.encode(clips).latent_dist.mode()
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    return _difference(vae.decode(noisy).sample, clips, weights)


def _difference(decoded: Tensor, clips: Tensor, weights: Tensor) -> Tensor:
    apart = (decoded - clips).abs()
    weighted: Tensor = weights * (apart + 2 * apart.pow(2))
    return weighted.mean()
