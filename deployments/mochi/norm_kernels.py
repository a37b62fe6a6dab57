"""SiLU of a group norm as three Triton kernels, for activations whose channels lie together in memory.

Each value is read twice and written once, which is all that the memory of a GPU has to move for it. torch's compiler
makes kernels for this layout that take ten times as long (measured on an H100, `benchmarks/results/`).

Moments are taken by Welford's method, and those of parts joined by Chan's (both: Chan, Golub and LeVeque, "Algorithms
for computing the sample variance", 1983): nothing is squared before it is centred.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # pixels of a tile
MOST_COLUMNS = 128  # channels of a tile
TILES = 32  # of one program, in large pictures
FEW_TILES = 8  # in small ones, whose programs would else be too few for all multiprocessors
LARGE = 2**16  # pixels


def norm_silu(inputs: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, out: Tensor) -> None:
    """What `decoder_layers.norm_silu` computes, by kernels of one's own.

    Args:
        inputs: [t, C, h, w]; channels lie together, pixels behind each other.
        weight: [C], as `bias`.
        groups: so many groups of channels are normalised.
        eps: added to the variance.
        out: as `inputs`; its rows and frames may lie apart.

    Raises:
        ValueError: the channels of the inputs or of `out` do not lie together, or its pixels lie apart.
    """
    frames, channels, height, width = inputs.shape
    if inputs.stride()[1:] != (1, width * channels, channels) or out.stride(1) != 1:
        raise ValueError(f"the channels must lie together; strides are {inputs.stride()} and {out.stride()}")
    pixels = height * width
    tiles = TILES if pixels >= LARGE else FEW_TILES
    columns = min(MOST_COLUMNS, triton.next_power_of_2(channels))
    parts = triton.cdiv(pixels, ROWS * tiles)
    moments = torch.empty(frames, parts, 2, channels, device=inputs.device)
    scales = torch.empty(frames, 2, channels, device=inputs.device)
    blocks = triton.cdiv(channels, columns)
    of_parts: Any = _moments_of_parts[(parts, frames, blocks)]
    of_parts(inputs, moments, inputs.stride(0), pixels, channels, parts, ROWS, columns, tiles)
    of_groups: Any = _scales_of_groups[(groups, frames)]
    in_group = channels // groups
    padded = triton.next_power_of_2(in_group)
    of_groups(moments, weight, scales, eps, pixels, channels, parts, in_group, ROWS * tiles, padded)
    scale: Any = _scale_and_activate[(triton.cdiv(pixels, ROWS), frames, blocks)]
    strides = out.stride(0), out.stride(2), out.stride(3)
    scale(inputs, scales, bias, out, inputs.stride(0), *strides, pixels, width, channels, ROWS, columns)


@triton.jit
def _moments_of_parts(
    inputs,
    moments,
    frame_stride,
    pixels,
    channels,
    parts,
    rows: tl.constexpr,
    columns: tl.constexpr,
    tiles: tl.constexpr,
) -> None:
    """Mean and sum of squared differences from it, of each channel over `rows * tiles` pixels of a frame."""
    part = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * columns + tl.arange(0, columns)
    row = tl.arange(0, rows)
    is_channel = channel < channels
    mean = tl.zeros([rows, columns], tl.float32)
    squares = tl.zeros([rows, columns], tl.float32)
    count = tl.zeros([rows], tl.float32)
    first = part * rows * tiles
    for tile in range(tiles):
        pixel = first + tile * rows + row
        is_here = pixel < pixels
        mask = is_here[:, None] & is_channel[None, :]
        at = inputs + frame * frame_stride + pixel[:, None] * channels + channel[None, :]
        value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        count += is_here.to(tl.float32)
        difference = value - mean
        moved = mean + difference / tl.maximum(count, 1.0)[:, None]
        squares = tl.where(mask, squares + difference * (value - moved), squares)
        mean = tl.where(mask, moved, mean)
    total = tl.sum(count, 0)
    joint = tl.sum(mean * count[:, None], 0) / total
    apart = mean - joint[None, :]
    joint_squares = tl.sum(squares + apart * apart * count[:, None], 0)
    to = moments + (frame * parts + part) * 2 * channels + channel
    tl.store(to, joint, mask=is_channel)
    tl.store(to + channels, joint_squares, mask=is_channel)


@triton.jit
def _scales_of_groups(
    moments,
    weight,
    scales,
    eps,
    pixels,
    channels,
    parts,
    in_group,
    most_pixels,
    padded: tl.constexpr,
) -> None:
    """The mean of each channel's group, and what a difference from it is multiplied by."""
    group = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    within = tl.arange(0, padded)
    channel = group * in_group + within
    is_channel = within < in_group
    at = moments + frame * parts * 2 * channels + channel
    total = tl.zeros([padded], tl.float32)
    for part in range(parts):
        count = tl.minimum(most_pixels, pixels - part * most_pixels).to(tl.float32)
        total += tl.load(at + part * 2 * channels, mask=is_channel, other=0.0) * count
    size = in_group * pixels
    mean = tl.sum(total, 0) / size
    squares = tl.zeros([padded], tl.float32)
    for part in range(parts):
        count = tl.minimum(most_pixels, pixels - part * most_pixels).to(tl.float32)
        apart = tl.load(at + part * 2 * channels, mask=is_channel, other=0.0) - mean
        of_part = tl.load(at + part * 2 * channels + channels, mask=is_channel, other=0.0) + apart * apart * count
        squares += tl.where(is_channel, of_part, 0.0)
    scale = tl.rsqrt(tl.sum(squares, 0) / size + eps)
    to = scales + frame * 2 * channels + channel
    tl.store(to, tl.zeros([padded], tl.float32) + mean, mask=is_channel)
    own = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(to + channels, scale * own, mask=is_channel)


@triton.jit
def _scale_and_activate(
    inputs,
    scales,
    bias,
    out,
    frame_stride,
    out_frame_stride,
    out_row_stride,
    out_pixel_stride,
    pixels,
    width,
    channels,
    rows: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    frame = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.program_id(2) * columns + tl.arange(0, columns)
    is_channel = channel < channels
    mask = (pixel < pixels)[:, None] & is_channel[None, :]
    mean = tl.load(scales + frame * 2 * channels + channel, mask=is_channel, other=0.0)
    scale = tl.load(scales + frame * 2 * channels + channels + channel, mask=is_channel, other=0.0)
    offset = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    at = inputs + frame * frame_stride + pixel[:, None] * channels + channel[None, :]
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    value = (value - mean[None, :]) * scale[None, :] + offset[None, :]
    activated = value * tl.sigmoid(value)
    place = (pixel // width) * out_row_stride + (pixel % width) * out_pixel_stride
    tl.store(out + frame * out_frame_stride + place[:, None] + channel[None, :], activated, mask=mask)
