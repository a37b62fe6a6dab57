"""Attention of sequences that lie in one row without padding: each attends to itself alone.

transformers calls it by the name that a model was loaded with, and hands it the row's boundaries as they were given to
the model's `forward`. Two kernels:

- in half precision on a GPU, FlashAttention for sequences of different lengths, all of them at once; without splitting
  keys, so that what a sequence gets does not depend on its neighbours;
- anywhere else torch's own, sequence by sequence: the same call that transformers makes for one sequence.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from deployments.proteins.contacts import ContactMaps

FLASH_CAPABILITY = (8, 0)  # Ampere
PACKED = "mochi_serve_packed"
"""The name of this attention among transformers'."""


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Where sequences begin and end in a row of T tokens."""

    bounds: tuple[int, ...]
    """Their first tokens, and T."""

    offsets: Tensor
    """The same as int32 on the device of the model."""

    contacts: ContactMaps
    """Gathers contacts of the sequences that want them."""

    @property
    def longest(self) -> int:
        """In tokens."""
        return max(stop - start for start, stop in pairwise(self.bounds))


def register_packed_attention() -> None:
    """Make PACKED known to transformers: once, or as often as one likes."""
    AttentionInterface.register(PACKED, attend_packed)
    AttentionMaskInterface.register(PACKED, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The boundaries are in the PackedRow."""


def attend_packed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packed: PackedRow,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it.

    Args:
        module: the layer's attention; `layer_idx` is its number from 0.
        query, key, value: [1, heads, T, d].
        scaling: of the products; None: 1/sqrt(d).

    Returns:
        [1, T, heads, d], and no weights.
    """
    packed.contacts.add(module.layer_idx, packed.bounds, query[0], key[0], scaling)
    if _has_flash(query):
        return _attend_flash(query, key, value, packed, scaling), None
    out = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    for start, stop in pairwise(packed.bounds):
        q, k, v = (tensor[:, :, start:stop] for tensor in (query, key, value))
        out[:, start:stop] = F.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2)
    return out, None


def _has_flash(query: Tensor) -> bool:
    in_half = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    return in_half and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY


def _attend_flash(query: Tensor, key: Tensor, value: Tensor, packed: PackedRow, scaling: float | None) -> Tensor:
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    offsets, longest = packed.offsets, packed.longest
    out = varlen_attn(query, key, value, offsets, offsets, longest, longest, scale=scaling, num_splits=1)
    assert isinstance(out, Tensor)
    return out[None]
