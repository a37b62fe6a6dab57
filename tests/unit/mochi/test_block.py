"""The transformer block against diffusers' own, and the ways it takes through attention against each other."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import MochiAttention, MochiAttnProcessor2_0
from diffusers.models.transformers.transformer_mochi import MochiTransformerBlock
from torch import Tensor, nn

from deployments.mochi.block import AttendedRow, fast_linear, joint_attention, joint_mask, rotate, run_block

CPU = torch.device("cpu")
VIDEO, TEXT = 40, 12


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def block(dtype: torch.dtype, last: bool = False) -> Any:
    made = MochiTransformerBlock(
        dim=64, num_attention_heads=4, attention_head_dim=16, pooled_projection_dim=32, context_pre_only=last
    )
    return made.to(dtype).eval().requires_grad_(False)


def inputs(dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    angles = torch.randn(VIDEO, 4, 8)
    video, text, embedding = torch.randn(rows, VIDEO, 64), torch.randn(rows, TEXT, 32), torch.randn(rows, 64)
    return video.to(dtype), text.to(dtype), embedding.to(dtype), torch.complex(angles.cos(), angles.sin())


def parts(rope: Tensor) -> tuple[Tensor, Tensor]:
    """As diffusers takes it."""
    return rope.real.contiguous(), rope.imag.contiguous()


def valid(text: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(text, lengths, strict=True)])


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("lengths", [[5, 12, 1], [12, 12, 12]])
@pytest.mark.parametrize("masked", [False, True])
def test_block_equals_diffusers(dtype: torch.dtype, bound: float, last: bool, lengths: list[int], masked: bool) -> None:
    ours, (video, text, embedding, rope) = block(dtype, last), inputs(dtype, 3)
    rows = [AttendedRow(length) for length in lengths]
    mask = joint_mask(rows, VIDEO, TEXT, CPU) if masked else None
    got = run_block(ours, video, text, nn.functional.silu(embedding), rows, mask, rope)
    wanted = ours(video, text, embedding, torch.arange(TEXT)[None] < torch.tensor(lengths)[:, None], parts(rope))
    assert [part.dtype for part in got] == [dtype, dtype]
    assert relative_error(got[0], wanted[0]) <= bound
    assert relative_error(valid(got[1], lengths), valid(wanted[1], lengths)) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@torch.no_grad()
def test_attention_is_bitwise_equal_to_diffusers(dtype: torch.dtype, last: bool) -> None:
    """With weights that are to be trained, so that our attention calls the layers themselves in fp32 too."""
    attn: Any = MochiAttention(
        query_dim=64,
        added_kv_proj_dim=32,
        processor=MochiAttnProcessor2_0(),
        heads=4,
        dim_head=16,
        added_proj_bias=False,
        out_dim=64,
        out_context_dim=32,
        context_pre_only=last,
    ).to(dtype)
    video, text, _, rope = inputs(dtype, 4)
    lengths = [1, 6, 0, TEXT]
    mask = torch.arange(TEXT)[None] < torch.tensor(lengths)[:, None]
    stock = attn(video, encoder_hidden_states=text, attention_mask=mask, image_rotary_emb=parts(rope))
    ours = joint_attention(attn, video, text, [AttendedRow(length) for length in lengths], None, rope)
    assert torch.equal(ours[0], stock[0])
    assert torch.equal(ours[1], stock[1])


def test_padding_changes_nothing() -> None:
    ours, (video, text, embedding, rope) = block(torch.float32), inputs(torch.float32, 2)
    lengths = [3, 7]
    other = text.clone()
    for row, length in zip(other, lengths, strict=True):
        row[length:] = 1e3
    rows = [AttendedRow(length) for length in lengths]
    for mask in (None, joint_mask(rows, VIDEO, TEXT, CPU)):
        one, two = (run_block(ours, video, words, embedding, rows, mask, rope) for words in (text, other))
        assert torch.equal(one[0], two[0])
        assert torch.equal(valid(one[1], lengths), valid(two[1], lengths))


def test_the_rotary_table_in_parts_turns_the_same() -> None:
    x, rope = torch.randn(2, VIDEO, 4, 16), inputs(torch.float32, 2)[3]
    assert relative_error(rotate(x, torch.view_as_real(rope)), rotate(x, rope)) <= 1e-6


def test_rows_of_one_length_attend_in_one_call_to_the_same_result() -> None:
    attn, (video, text, _, rope) = block(torch.float32).attn1, inputs(torch.float32, 3)
    together = joint_attention(attn, video, text, [AttendedRow(TEXT)] * 3, None, rope)
    for i in range(3):
        alone = joint_attention(attn, video[i : i + 1], text[i : i + 1], [AttendedRow(TEXT)], None, rope)
        assert all(relative_error(a[i : i + 1], b) <= 1e-6 for a, b in zip(together, alone, strict=True))


def test_a_mask_only_where_it_pays() -> None:
    mask = joint_mask([AttendedRow(2), AttendedRow(0)], 3, 2, CPU)
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert joint_mask([AttendedRow(2)] * 2, 3, 2, CPU) is None
    assert joint_mask([AttendedRow(2), AttendedRow(0)], 3, 2, torch.device("meta")) is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 31, 32, 100])
def test_fast_linear_equals_the_layer(bias: bool, rows: int) -> None:
    layer = nn.Linear(341, 128, bias=bias).requires_grad_(False)
    x = torch.randn(2, rows, 400)[..., :341]
    assert relative_error(fast_linear(layer, x), layer(x)) <= 1e-6


def test_other_layers_are_called_as_they_are() -> None:
    """A quantised or adapted layer is no `nn.Linear`, or one with its own forward."""

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    layer, x = Doubled(8, 8).requires_grad_(False), torch.randn(64, 8)
    assert torch.equal(fast_linear(layer, x), layer(x))


def test_a_layer_in_training_learns() -> None:
    """torch's operator for oneDNN has no gradient."""
    layer, x = nn.Linear(8, 8), torch.randn(64, 8)
    assert torch.equal(fast_linear(layer, x), layer(x))
    fast_linear(layer, x).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(8, 8))
