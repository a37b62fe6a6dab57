"""The authors' video decoder (vae/models.py: `Decoder`, `DepthToSpaceTime`), the whole clip at once.

Weights come under diffusers' names, whose layouts are the authors'.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = 32
GROUP_EPS = 1e-5
CONTEXT = 2  # frames that a kernel of three sees before a frame

Weights = Mapping[str, Tensor]


def decode(weights: Weights, latents: Tensor, temporal: tuple[int, ...] = (3, 2, 1)) -> Tensor:
    """[12, T, h, w] to [3, 6T - 5, 8h, 8w], nominally -1 to 1.

    Args:
        weights: the decoder's `state_dict`.
        latents: in the VAE's scale.
        temporal: expansion in time of each upsampling block, the deepest first.
    """
    x = F.conv3d(latents[None], weights["conv_in.weight"], weights["conv_in.bias"])
    x = _resnets(weights, "block_in", x)
    for index, expansion in enumerate(temporal):
        name = f"up_blocks.{index}"
        x = _resnets(weights, name, x)
        x = _pointwise(x, weights[f"{name}.proj.weight"], weights[f"{name}.proj.bias"])
        x = depth_to_space_time(x, expansion, spatial=2)
    x = _resnets(weights, "block_out", x)
    return _pointwise(_silu(x), weights["proj_out.weight"], weights["proj_out.bias"])[0]


def depth_to_space_time(x: Tensor, temporal: int, spatial: int) -> Tensor:
    """Channels (C, st, sh, sw) become time and space; the frames that the first one has too many are dropped."""
    batch, _, frames, height, width = x.shape
    parts = x.reshape(batch, -1, temporal, spatial, spatial, frames, height, width)
    spread = torch.einsum("bcsyxthw->bctshywx", parts)
    return spread.reshape(batch, -1, frames * temporal, height * spatial, width * spatial)[:, :, temporal - 1 :]


def frames_as_bytes(decoded: Tensor) -> Tensor:
    """[3, t, H, W] in -1 to 1 to [t, H, W, 3] bytes, cut off as `save_video` cuts them."""
    unit = ((decoded + 1) / 2).clamp(0, 1)
    return (unit.permute(1, 2, 3, 0) * 255).to(torch.uint8)


def _resnets(weights: Weights, block: str, x: Tensor) -> Tensor:
    index = 0
    while f"{block}.resnets.{index}.conv1.conv.weight" in weights:
        change = x
        for part in ("1", "2"):
            name = f"{block}.resnets.{index}"
            change = _silu(_frame_norm(change, weights, f"{name}.norm{part}.norm_layer"))
            change = _causal(change, weights, f"{name}.conv{part}.conv")
        x = x + change
        index += 1
    return x


def _frame_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Group norm of each frame by itself."""
    batch, channels, frames, height, width = x.shape
    grouped = x.reshape(batch, GROUPS, channels // GROUPS, frames, height * width)
    mean = grouped.mean((2, 4), keepdim=True)
    variance = (grouped - mean).square().mean((2, 4), keepdim=True)
    normed = ((grouped - mean) / (variance + GROUP_EPS).sqrt()).reshape(x.shape)
    weight, bias = (weights[f"{name}.{part}"].view(-1, 1, 1, 1) for part in ("weight", "bias"))
    return normed * weight + bias


def _causal(x: Tensor, weights: Weights, name: str) -> Tensor:
    """A convolution that sees no later frame; beyond the clip's edges are its first frame and its outermost pixels."""
    frames, rows, columns = (
        torch.arange(-before, size + after).clamp(0, size - 1)
        for size, before, after in zip(x.shape[2:], (CONTEXT, 1, 1), (0, 1, 1), strict=True)
    )
    padded = x[:, :, frames][:, :, :, rows][..., columns]
    return F.conv3d(padded, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("bcthw,oc->bothw", x, weight) + bias.view(-1, 1, 1, 1)


def _silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()
