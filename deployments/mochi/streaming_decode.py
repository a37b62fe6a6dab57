"""Exact decoding of latents one frame at a time, for the memory of one.

The decoder's convolutions are causal in time and its normalisation is per frame, so each convolution only needs the
last inputs of the chunk before (two frames for a kernel of three). At 848x480 that is 2.6 GB of cache in place of
80 GB for 163 frames at once, without seams or repeated work.
"""

import logging
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.mochi.decoder_layers import NormSilu, decoder_layers, norm_silu, wanted_frames
from deployments.settings import FrameDrop

if TYPE_CHECKING:
    from diffusers import AutoencoderKLMochi

_logger = logging.getLogger("ray.serve")


class StreamingDecoder:
    """Decodes with the weights of a VAE, which it lays out anew in memory; the VAE still decodes the same.

    One video at a time: `decode` of a second while the first is unfinished gives wrong frames.

    Args:
        vae: its decoder is used.
        frame_drop: where the five frames go that the first latent frame has too many; see `ModelSettings.frame_drop`.
        memory_format: of activations and weights; default: channels last.
        norm_silu: what norms and activates; default: the fastest for them.
    """

    def __init__(
        self,
        vae: "AutoencoderKLMochi",
        frame_drop: FrameDrop = "end",
        memory_format: torch.memory_format = torch.channels_last_3d,
        norm_silu: NormSilu | None = None,
    ) -> None:
        self._vae = vae
        self._frame_drop = frame_drop
        self._memory_format = memory_format
        norm_silu = norm_silu or fastest_norm(vae.device, memory_format)
        self._layers = decoder_layers(vae.decoder, memory_format, norm_silu)
        self._expansion = prod(layer.expansion for layer in self._layers)  # frames of a latent frame

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
                yield self._decode_next(latents[:, index : index + 1], is_first=index == 0)
        finally:
            # Also when the caller stops halfway: the next video must not begin where this one ended.
            self._forget()

    def _decode_next(self, latents: Tensor, is_first: bool) -> Tensor:
        """The frames of the next latent frame of a video, [12, 1, h, w]."""
        first = self._vae.decoder.conv_in  # of a kernel of one, so it is a linear layer
        values = F.linear(latents[None].movedim(1, -1), first.weight.flatten(1), first.bias).movedim(-1, 1)
        values = values.contiguous(memory_format=self._memory_format)
        dropped = self._drops(is_first)
        for layer, wanted in zip(self._layers, wanted_frames(self._layers, dropped), strict=True):
            values = layer(values, wanted)
        return values[0]

    def _drops(self, is_first: bool) -> list[int]:
        """How many of the first frames that each layer makes of the next latent frame are dropped.

        A video begins with one frame: of 6 (k + 1) frames 6k + 1 remain. diffusers drops five at the end. In the
        authors' code one frame that is expanded by n in time becomes n, of which the last is kept, so that the
        convolutions behind see it alone, as they did when the model was trained (`DepthToSpaceTime` in genmoai/mochi,
        vae/models.py).
        """
        dropped = [0] * len(self._layers)
        if is_first and self._frame_drop == "each_upsample":
            return [layer.expansion - 1 for layer in self._layers]
        ratio: int = self._vae.temporal_compression_ratio
        if is_first and self._vae.drop_last_temporal_frames and self._expansion >= ratio:
            dropped[-1] = ratio - 1
        return dropped

    def _forget(self) -> None:
        for layer in self._layers:
            layer.forget()


def fastest_norm(device: torch.device, memory_format: torch.memory_format) -> NormSilu:
    """Kernels of our own for channels that lie together on a GPU, where Triton is installed; else torch's operators."""
    if device.type != "cuda" or memory_format != torch.channels_last_3d:
        return norm_silu
    try:
        from deployments.mochi.norm_kernels import norm_silu as norm_silu_by_kernels
    except ImportError as error:
        _logger.warning("decoding is slower than it might be: %s", error)
        return norm_silu
    return norm_silu_by_kernels


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
