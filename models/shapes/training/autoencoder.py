"""The video autoencoder: Mochi's own class, narrow, trained on drawn clips.

First encoder and decoder together; then the decoder alone on latents with some noise in them, as a sampler leaves
them, while the latents stay what they are.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLMochi
from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiChunkedGroupNorm3D, MochiResnetBlock3D
from torch import Tensor

from models.shapes.scenes.draw import draw_clip
from models.shapes.scenes.scene import BACKGROUNDS, CLIP_FRAMES, Scene, draw_scene, draw_tracks
from models.shapes.training.optimise import (
    CHECKPOINT_EVERY_S,
    Stage,
    Update,
    group,
    python_random,
    set_rate,
    update,
)


@dataclass(frozen=True, slots=True)
class Window:
    """The piece of a clip that is trained on.

    Windows around a figure show many colours for the same work; whole pictures show what is served.
    """

    batch: int  # clips
    frames: int
    side: int  # of the square picture, pixels
    cut: int  # of the square around a figure that is cut out of it, pixels


WINDOWS = (Window(10, 7, 64, 48), Window(4, 13, 64, 64), Window(10, 7, 96, 48), Window(2, 13, 96, 96))
FOREGROUND_WEIGHT = 6.0
FOREGROUND_CONTRAST = 0.1
KL_WEIGHT = 1.2e-5
LATENT_NOISE = 0.1


@dataclass(frozen=True, slots=True)
class AutoencoderPlan:
    """How the autoencoder is trained."""

    steps: int = 2000  # in all
    windows: tuple[Window, ...] = WINDOWS  # in turn
    decoder_share: float = 0.3  # the part of the steps that trains the decoder alone
    lr: float = 2e-3
    seed: int = 1


def new_autoencoder() -> AutoencoderKLMochi:
    """Random weights. No attention in the encoder: motion between neighbouring frames is all there is to see.

    The class normalises in 32 groups. A group of few channels forgets how bright a plain background is, so the
    inner width is four times that.
    """
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 64, 128),
        decoder_block_out_channels=(32, 32, 64, 128),
        layers_per_block=(0, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
    )
    _start_linear(vae)
    return vae


@torch.no_grad()
def _start_linear(vae: AutoencoderKLMochi) -> None:
    """Begin as a linear map of the colours, their differences enlarged: residual branches add nothing yet, and
    neither do the encoder's Fourier features, which are noise to it where a colour is flat."""
    for module in vae.modules():
        if isinstance(module, MochiResnetBlock3D):
            module.conv2.conv.weight.zero_()
            module.conv2.conv.bias.zero_()
    vae.encoder.proj_in.weight[:, 3:].zero_()
    mixes = torch.randn(vae.encoder.proj_in.weight.shape[0], 3)
    vae.encoder.proj_in.weight[:, :3] = mixes @ _opponent(torch.eye(3)).T


def train_autoencoder(
    plan: AutoencoderPlan,
    folder: Path,
    device: torch.device,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    update: Update = update,
) -> tuple[AutoencoderKLMochi, Stage]:
    """Train, or go on where a stopped run was. Returns the autoencoder, and the stage for its log."""
    torch.manual_seed(plan.seed)
    vae = new_autoencoder().to(device)
    _join_chunks(vae)
    optimiser = torch.optim.AdamW([group(vae.parameters(), plan.lr, 1e-4)], betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(plan.seed)
    stage = Stage("autoencoder", folder, plan, generator, checkpoint_every_s, vae=vae, optimiser=optimiser)
    together = int(plan.steps * (1 - plan.decoder_share))
    for step in stage:
        set_rate(optimiser, step, plan.steps)
        window = plan.windows[step % len(plan.windows)]
        clips, weights = (tensor.to(device) for tensor in _batch(window, generator))
        reconstruct = _joint_loss if step < together else _decoder_loss
        loss = reconstruct(vae, clips, weights, generator)
        update(optimiser, loss, vae.parameters())
        stage.note(loss)
    return vae.eval().requires_grad_(False), stage


def _join_chunks(vae: AutoencoderKLMochi) -> None:
    """Normalise all frames in one call: the class splits them to save memory that small clips do not need."""
    for module in vae.modules():
        if isinstance(module, MochiChunkedGroupNorm3D):
            module.chunk_size = 1 << 16


def _batch(window: Window, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips [B, 3, F, H, W] and the weights of their pixels [B, 1, F, H, W]."""
    rng = python_random(generator)
    drawn = [_draw(rng, window) for _ in range(window.batch)]
    return torch.stack([clip for clip, _ in drawn]), torch.stack([weight for _, weight in drawn])


def _draw(rng: random.Random, window: Window) -> tuple[Tensor, Tensor]:
    """A piece from somewhere in a clip, with a figure in it, and its weights."""
    scene = draw_scene(rng, "train")
    later = rng.randint(0, CLIP_FRAMES - window.frames)
    tracks = [track.after(later) for track in draw_tracks(rng, scene)]
    clip = draw_clip(scene, tracks, window.side, window.side, window.frames)
    weights = _weights(clip, scene)
    left, top = (_edge(rng, centre, window) for centre in rng.choice(tracks).at(window.frames // 2))
    right = left + window.cut
    bottom = top + window.cut
    return clip[..., top:bottom, left:right], weights[..., top:bottom, left:right]


def _edge(rng: random.Random, centre: float, window: Window) -> int:
    """Where a window begins that holds `centre`, a fraction of the side, not too near its own edges."""
    middle = centre * window.side - window.cut / 2 + rng.uniform(-0.3, 0.3) * window.cut
    return round(min(max(middle, 0), window.side - window.cut))


def _weights(clip: Tensor, scene: Scene) -> Tensor:
    """More where a figure is: it covers a tenth of the picture, and a plain mean would wash its colour out."""
    ground = torch.tensor(BACKGROUNDS[scene.background]).view(3, 1, 1, 1) * 2 - 1
    foreground = (clip - ground).abs().amax(0, keepdim=True) > FOREGROUND_CONTRAST
    return 1 + FOREGROUND_WEIGHT * foreground


def _joint_loss(vae: AutoencoderKLMochi, clips: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Reconstruction, and the KL divergence of the latents from a standard normal, for each of their elements."""
    posterior = vae.encode(clips).latent_dist
    divergence: Tensor = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean() / 2
    return _difference(vae.decode(posterior.sample(generator)).sample, clips, weights) + KL_WEIGHT * divergence


def _decoder_loss(vae: AutoencoderKLMochi, clips: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    with torch.no_grad():
        latents = vae.encode(clips).latent_dist.mode()
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    return _difference(vae.decode(latents + LATENT_NOISE * noise).sample, clips, weights)


def _difference(decoded: Tensor, clips: Tensor, weights: Tensor) -> Tensor:
    apart = _opponent(decoded - clips).abs()
    return (weights * (apart + 2 * apart.pow(2))).mean()


def _opponent(rgb: Tensor) -> Tensor:
    """[B, 3, ...]: brightness, and how blue is outweighed by red, and red and blue by green.

    The two differences count three times as much as brightness: that varies most, and alone would be learned for long.
    """
    red, green, blue = rgb.unbind(1)
    return torch.stack([(red + green + blue) / 3, red - blue, 1.5 * green - 0.75 * (red + blue)], dim=1)
