"""The projections of queries, keys and values as one product, without a second copy of their weights.

`pack_projections` lays the three weights one behind the other in memory, and each layer keeps its own as a view of
that. Whether three layers lie so is read off their addresses each time, so nothing has to be told when a layer gets an
adapter, other weights or a quantised one: `packed_weight` then finds no whole weight, and each layer is called by
itself.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Layers = Sequence[nn.Module]


def pack_projections(transformer: Any) -> None:
    """Lay the weights of every attention of diffusers' `MochiTransformer3DModel` so that `packed_weight` finds them.

    Needs room for the weights of one attention beside the model. Adapted and quantised layers stay as they are.
    """
    for block in transformer.transformer_blocks:
        for layers in (video_projections(block.attn1), text_projections(block.attn1)):
            if _are_plain(layers) and packed_weight(layers) is None:
                _pack(layers)


def video_projections(attn: Any) -> Layers:
    """The layers of queries, keys and values of the video tokens."""
    return attn.to_q, attn.to_k, attn.to_v


def text_projections(attn: Any) -> Layers:
    """The same of the text tokens."""
    return attn.add_q_proj, attn.add_k_proj, attn.add_v_proj


def packed_weight(layers: Layers) -> Tensor | None:
    """[sum of the outputs, inputs] of layers whose weights lie one behind the other, in their memory; else None."""
    if not _are_plain(layers):
        return None
    weights: list[Tensor] = [layer.weight.detach() for layer in layers]  # type: ignore[operator]
    for before, after in pairwise(weights):
        if before.data_ptr() + before.nbytes != after.data_ptr() or before.dtype != after.dtype:
            return None
        if before.untyped_storage().data_ptr() != after.untyped_storage().data_ptr():
            return None
    rows, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    return weights[0].as_strided((rows, columns), (columns, 1))


def _are_plain(layers: Layers) -> bool:
    """Whether each is a product with its weight and nothing else, all with as many inputs."""
    return all(_is_plain(layer) for layer in layers) and len({layer.in_features for layer in layers}) == 1


def _is_plain(layer: nn.Module) -> bool:
    # Adapters are other classes, and quantised weights other tensors.
    return (
        type(layer) is nn.Linear
        and layer.bias is None
        and type(layer.weight.data) is Tensor
        and layer.weight.is_contiguous()
        and not layer.weight.requires_grad
    )


def _pack(layers: Layers) -> None:
    packed = torch.cat([layer.weight.detach() for layer in layers])  # type: ignore[operator]
    begin = 0
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        end = begin + layer.out_features
        layer.weight.data = packed[begin:end]
        begin = end
