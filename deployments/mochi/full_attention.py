"""Attention in the model's dtype, by the fastest kernel that is here.

On Hopper that is FlashAttention 4 where it is installed (`mochi-serve[hopper]`): 702 TFLOP/s for a row of the longest
video, where cuDNN's kernel, which torch chooses, does 586 with the same error. Everywhere else it is torch's choice.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

FLASH_CAPABILITY = 9  # Hopper; on others it was not measured
FLASH_DTYPES = (torch.bfloat16, torch.float16)
# Of the device or its memory, whatever ran on it: no other code would fare better.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)
PROBE_TOKENS = 256
PROBE_ERROR = 0.02  # relative, between two kernels; rounding alone makes 0.003 in bf16

_logger = logging.getLogger("ray.serve")


def attend_full(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one row among all its tokens.

    Args:
        query, key, value: [S, heads, d].

    Returns:
        [S, heads, d].
    """
    flash = _flash(query.device, query.dtype, *query.shape[1:]) if query.is_cuda else None
    return _by_torch(query, key, value) if flash is None else flash(query, key, value)


def attention_name(device: torch.device, dtype: torch.dtype, heads: int, dim: int) -> str:
    """For people, which kernel `attend_full` takes; empty where it is torch's choice."""
    flash = device.type == "cuda" and _flash(device, dtype, heads, dim) is not None
    return "FlashAttention 4" if flash else ""


def _by_torch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)


@cache
def _flash(device: torch.device, dtype: torch.dtype, heads: int, dim: int) -> Attend | None:
    """FlashAttention 4, compiled for such heads and tried; None where it is not to be had."""
    if torch.cuda.get_device_capability(device)[0] != FLASH_CAPABILITY or dtype not in FLASH_DTYPES:
        return None
    if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
        return None
    try:
        attention = import_module("flash_attn.cute").flash_attn_func

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = attention(query[None], key[None], value[None])
            tensor: Tensor = out[0] if isinstance(out, tuple) else out
            return tensor[0]

        generator = torch.Generator(device).manual_seed(0)
        probes = [
            torch.randn(PROBE_TOKENS, heads, dim, device=device, dtype=dtype, generator=generator) for _ in range(3)
        ]
        wanted = _by_torch(*probes).float()
        off = float((attend(*probes).float() - wanted).norm() / wanted.norm())
    except DEVICE_ERRORS:
        raise
    except Exception as error:
        _logger.warning("FlashAttention 4 does not work here, so torch chooses the kernel, which is slower: %r", error)
        return None
    if not off < PROBE_ERROR:
        _logger.warning("FlashAttention 4 is wrong by %.2g here, so torch chooses the kernel, which is slower", off)
        return None
    return attend
