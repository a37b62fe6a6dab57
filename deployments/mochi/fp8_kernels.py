"""What attention in 8 bits needs beside itself, as two Triton kernels: its inputs are read twice and written once.

torch's own operators read and write them ten times, which takes half of what the 8 bits gain (measured on an H100,
`benchmarks/results/`).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # tokens of a tile
COLUMNS = 128  # channels of a tile
TILES = 16  # of one program that looks for the extremes


def channel_statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, least and largest value of each channel.

    Args:
        values: [S, C], its channels behind each other in memory.

    Returns:
        Three times [C] fp32.
    """
    tokens, channels = values.shape
    parts = triton.cdiv(tokens, ROWS * TILES)
    found = torch.empty(3, parts, channels, device=values.device)
    kernel: Any = _statistics[(parts, triton.cdiv(channels, COLUMNS))]
    kernel(values, found, values.stride(0), tokens, channels, parts, ROWS, COLUMNS, TILES)
    sums, least, largest = found
    return sums.sum(0) / tokens, least.amin(0), largest.amax(0)


def scale_channels(values: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(values - shift) * scale, rounded to `dtype`; what that cannot hold becomes its largest number.

    Args:
        values: [S, C], its channels behind each other in memory.
        shift, scale: [C] fp32.

    Returns:
        [S, C] contiguous.
    """
    tokens, channels = values.shape
    out = torch.empty(tokens, channels, dtype=dtype, device=values.device)
    kernel: Any = _scale[(triton.cdiv(tokens, ROWS), triton.cdiv(channels, COLUMNS))]
    limit = torch.finfo(dtype).max
    kernel(values, shift, scale.contiguous(), out, values.stride(0), tokens, channels, limit, ROWS, COLUMNS)
    return out


@triton.jit
def _statistics(
    values,
    found,
    token_stride,
    tokens,
    channels,
    parts,
    rows: tl.constexpr,
    columns: tl.constexpr,
    tiles: tl.constexpr,
) -> None:
    """Sum, least and largest value of each channel over `rows * tiles` tokens."""
    part = tl.program_id(0)
    channel = tl.program_id(1) * columns + tl.arange(0, columns)
    is_channel = channel < channels
    total = tl.zeros([rows, columns], tl.float32)
    least = tl.full([rows, columns], float("inf"), tl.float32)
    largest = tl.full([rows, columns], float("-inf"), tl.float32)
    for tile in range(tiles):
        token = (part * tiles + tile) * rows + tl.arange(0, rows)
        mask = (token < tokens)[:, None] & is_channel[None, :]
        at = values + token.to(tl.int64)[:, None] * token_stride + channel[None, :]
        value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        total += value
        least = tl.minimum(least, tl.where(mask, value, float("inf")))
        largest = tl.maximum(largest, tl.where(mask, value, float("-inf")))
    to = found + part * channels + channel
    apart = parts * channels
    tl.store(to, tl.sum(total, 0), mask=is_channel)
    tl.store(to + apart, tl.min(least, 0), mask=is_channel)
    tl.store(to + 2 * apart, tl.max(largest, 0), mask=is_channel)


@triton.jit
def _scale(
    values,
    shift,
    scale,
    out,
    token_stride,
    tokens,
    channels,
    limit,
    rows: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    channel = tl.program_id(1) * columns + tl.arange(0, columns)
    token = tl.program_id(0) * rows + tl.arange(0, rows)
    is_channel = channel < channels
    mask = (token < tokens)[:, None] & is_channel[None, :]
    of_channel = tl.load(shift + channel, mask=is_channel, other=0.0)
    by = tl.load(scale + channel, mask=is_channel, other=0.0)
    row = token.to(tl.int64)[:, None]
    value = tl.load(values + row * token_stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    value = (value - of_channel[None, :]) * by[None, :]
    value = tl.minimum(tl.maximum(value, -limit), limit)
    tl.store(out + row * channels + channel[None, :], value.to(out.dtype.element_ty), mask=mask)
