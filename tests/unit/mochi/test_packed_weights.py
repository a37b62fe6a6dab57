"""The three projections of an attention as one product: the same numbers in the same memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.common import full_size as fs
from deployments.mochi.packed_weights import pack_projections, packed_weight, text_projections, video_projections


@pytest.fixture
def transformer() -> Any:
    return fs.random_transformer(torch.device("cpu"), torch.float32, **fs.TINY)


def stored_bytes(module: nn.Module) -> int:
    storages = [parameter.untyped_storage() for parameter in module.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def packed(transformer: Any) -> list[Tensor | None]:
    attentions = [block.attn1 for block in transformer.transformer_blocks]
    return [packed_weight(of(attn)) for attn in attentions for of in (video_projections, text_projections)]


def test_weights_are_packed_in_place(transformer: Any) -> None:
    wanted = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    size = stored_bytes(transformer)
    assert packed(transformer) == [None] * 6
    pack_projections(transformer)
    assert stored_bytes(transformer) == size
    assert all(torch.equal(weight, wanted[name]) for name, weight in transformer.state_dict().items())
    attn = transformer.transformer_blocks[1].attn1
    weight = packed_weight(video_projections(attn))
    assert weight is not None and weight.data_ptr() == attn.to_q.weight.data_ptr()
    assert torch.equal(weight, torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight]))


def test_packing_again_moves_nothing(transformer: Any) -> None:
    pack_projections(transformer)
    before = [weight.data_ptr() for weight in packed(transformer) if weight is not None]
    pack_projections(transformer)
    assert [weight.data_ptr() for weight in packed(transformer) if weight is not None] == before
    assert len(before) == 6


class Adapted(nn.Linear):
    """As adapters and quantised layers are: of another class."""


def replace_layer(attn: Any) -> None:
    attn.to_k = Adapted(32, 32, bias=False).requires_grad_(False)


def replace_weight(attn: Any) -> None:
    attn.to_v.weight.data = attn.to_v.weight.clone()


def add_bias(attn: Any) -> None:
    attn.to_q.bias = nn.Parameter(torch.zeros(32), requires_grad=False)


def train(attn: Any) -> None:
    attn.to_q.weight.requires_grad_(True)


@pytest.mark.parametrize("change", [replace_layer, replace_weight, add_bias, train])
def test_layers_that_are_changed_are_no_longer_one_product(change: Any, transformer: Any) -> None:
    pack_projections(transformer)
    attn = transformer.transformer_blocks[0].attn1
    change(attn)
    assert packed_weight(video_projections(attn)) is None
    assert packed_weight(text_projections(attn)) is not None


@pytest.mark.parametrize("change", [replace_layer, add_bias, train])
def test_layers_that_are_no_plain_products_stay_where_they_are(change: Any, transformer: Any) -> None:
    attn = transformer.transformer_blocks[0].attn1
    change(attn)
    addresses = [layer.weight.data_ptr() for layer in video_projections(attn)]  # type: ignore[operator]
    pack_projections(transformer)
    assert addresses == [layer.weight.data_ptr() for layer in video_projections(attn)]  # type: ignore[operator]
