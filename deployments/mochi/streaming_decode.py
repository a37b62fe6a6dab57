"""Exact decoding of latents one frame at a time, for the memory of one.

The decoder's convolutions are causal in time and its normalisation is per frame, so each convolution only needs the
last inputs of the chunk before (two frames for a kernel of three). At 848x480 that is 2.6 GB of cache in place of
80 GB for 163 frames at once, without seams or repeated work.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.settings import FrameDrop

if TYPE_CHECKING:
    from diffusers import AutoencoderKLMochi
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
    from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiUpBlock3D


class StreamingConv3d(nn.Module):
    """A causal convolution that goes on where its last call ended. Wraps the weights of the original, no copy.

    The first chunk after `forget` is padded as the original pads: its first frame repeated.
    """

    def __init__(self, original: "CogVideoXCausalConv3d") -> None:
        super().__init__()
        if original.pad_mode != "replicate":
            raise ValueError(f"pad_mode is {original.pad_mode!r}; only 'replicate', Mochi's own, can be streamed")
        self.conv = original.conv
        self.past_frames = original.time_pad  # that the kernel sees before a frame
        self.padding = (original.width_pad, original.width_pad, original.height_pad, original.height_pad, 0, 0)
        self.cache: Tensor | None = None  # the last `past_frames` inputs of the chunk before

    def forget(self) -> None:
        """Start a new video."""
        self.cache = None

    def forward(self, inputs: Tensor, conv_cache: None = None) -> tuple[Tensor, None]:
        """inputs: [B, C, t, h, w], the next t frames. The second value is what diffusers' blocks expect."""
        if self.past_frames:
            before = self.cache
            if before is None:
                before = inputs[:, :, :1].expand(-1, -1, self.past_frames, -1, -1)
            inputs = torch.cat([before, inputs], dim=2)
            self.cache = inputs[:, :, -self.past_frames :].clone()
        return self.conv(F.pad(inputs, self.padding, mode="replicate")), None


class CausalUpsample(nn.Module):
    """An upsampling block that drops the frames which it makes before a video's first. Wraps the original, no copy.

    A video begins with one frame, and expanded by n in time that frame becomes n, of which the last is kept. The
    convolutions behind then see it alone, as they did when the model was trained (`DepthToSpaceTime` in genmoai/mochi,
    vae/models.py).
    """

    def __init__(self, original: "MochiUpBlock3D") -> None:
        super().__init__()
        self.block = original
        self._dropped = original.temporal_expansion - 1
        self._begun = False

    def forget(self) -> None:
        """Start a new video."""
        self._begun = False

    def forward(self, inputs: Tensor, conv_cache: None = None) -> tuple[Tensor, object]:
        """inputs: [B, C, t, h, w], the next t frames. The second value is what diffusers' decoder expects."""
        frames, cache = self.block(inputs, conv_cache=conv_cache)
        if not self._begun:
            frames = frames[:, :, self._dropped :]
        self._begun = True
        return frames, cache


class StreamingDecoder:
    """Decodes with the decoder of one VAE instance, whose convolutions it replaces by streaming ones.

    One video at a time: `decode` of a second while the first is unfinished gives wrong frames.

    Args:
        vae: whose decoder is changed in place.
        frame_drop: where the five frames go that the first latent frame has too many; see `ModelSettings.frame_drop`.
    """

    def __init__(self, vae: "AutoencoderKLMochi", frame_drop: FrameDrop = "end") -> None:
        self._vae = vae
        self._frame_drop = frame_drop
        self._streaming: list[StreamingConv3d | CausalUpsample] = [*_make_streaming(vae.decoder)]
        if frame_drop == "each_upsample":
            self._streaming += _make_causal(vae.decoder)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the video piece by piece; with frames dropped at the end, the pieces joined equal
        ``vae.decode(latents)``.

        Args:
            latents: [12, T, h, w], denormalised (see `denormalise`).

        Yields:
            [3, t, 8h, 8w] in the model's dtype, nominally -1 to 1: first the frames of the first latent frame
            less those that are dropped (five of six), then six at a time.
        """
        self._forget()
        try:
            for index in range(latents.shape[1]):
                frames = self._vae.decoder(latents[None, :, index : index + 1])[0][0]
                yield frames[:, self._count_dropped(frames.shape[1]) :] if index == 0 else frames
        finally:
            # Also when the caller stops halfway: the next video must not begin where this one ended.
            self._forget()

    def _count_dropped(self, count: int) -> int:
        """How many of the first latent frame's frames are dropped here, so that 6k + 1 remain of 6 (k + 1)."""
        if self._frame_drop == "each_upsample":
            return 0
        ratio: int = self._vae.temporal_compression_ratio
        return ratio - 1 if self._vae.drop_last_temporal_frames and count >= ratio else 0

    def _forget(self) -> None:
        for module in self._streaming:
            module.forget()


def _make_streaming(decoder: nn.Module) -> list[StreamingConv3d]:
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d

    causal = [name for name, module in decoder.named_modules() if isinstance(module, CogVideoXCausalConv3d)]
    made = []
    for name in causal:
        streaming = StreamingConv3d(decoder.get_submodule(name))
        decoder.set_submodule(name, streaming)
        made.append(streaming)
    return made


def _make_causal(decoder: nn.Module) -> list[CausalUpsample]:
    from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiUpBlock3D

    blocks = [name for name, module in decoder.named_modules() if isinstance(module, MochiUpBlock3D)]
    made = []
    for name in blocks:
        upsample = CausalUpsample(decoder.get_submodule(name))
        decoder.set_submodule(name, upsample)
        made.append(upsample)
    return made


def denormalise(vae: "AutoencoderKLMochi", latents: Tensor) -> Tensor:
    """From the transformer's unit scale to the VAE's: latents * std / scaling_factor + mean, in fp32.

    Args:
        latents: [12, T, h, w] fp32.
    """
    config = vae.config
    if config.latents_mean is None or config.latents_std is None:
        return latents / float(config.scaling_factor)
    mean, std = (_per_channel(values, latents) for values in (config.latents_mean, config.latents_std))
    return latents * std / float(config.scaling_factor) + mean


def _per_channel(values: list[float], latents: Tensor) -> Tensor:
    return torch.tensor(values, device=latents.device, dtype=latents.dtype).view(-1, 1, 1, 1)


def to_uint8(frames: Tensor) -> Tensor:
    """[3, t, H, W] in -1 to 1 to RGB bytes [t, H, W, 3], rounded as the reference pipeline rounds."""
    unit = (frames.float() * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
