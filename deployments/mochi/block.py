"""One transformer block of Mochi as free functions on the weights of diffusers' modules.

The arithmetic is `MochiTransformerBlock.forward`'s. What is left out is what a step does not need: dispatch through
some 30 small modules, a pass over memory for each factor, strided halves for the rotary embedding, a call of attention
for each row on the CPU. On two CPU cores a step of one row takes four fifths of the time it takes with diffusers'
blocks, one of eight rows two thirds.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from deployments.mochi.fp8_attention import attend_fp8, round_to_fp8
from deployments.mochi.full_attention import attend_full


class AttendedRow(NamedTuple):
    """What attention has to know of one row, on the host."""

    text: int
    """Tokens of its prompt; the rest is padding."""
    fp8: bool = False
    """In 8 bits: see `fp8_attention`."""


Rope = Tensor
"""The rotary embedding, cos + i sin: [N, heads, head_dim / 2] complex64. What is to be compiled gets its parts,
[N, heads, head_dim / 2, 2] fp32 (`torch.view_as_real`): torch's compiler knows no complex numbers."""

RunBlock = Callable[[Any, Tensor, Tensor, Tensor, Sequence[AttendedRow], Tensor | None, Rope], tuple[Tensor, Tensor]]
"""What `run_block` is; `CompiledBlock` is another one."""

JointAttention = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`MochiAttention`, [B, N, D] video and [B, L, D'] text to the attended tokens, in the same shapes."""

# Below this many rows of a matrix the call costs more than the product.
_ONEDNN_ROWS = 32


def fast_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Call the layer; a frozen fp32 `nn.Linear` on the CPU by oneDNN, within rounding of torch's own.

    torch multiplies fp32 matrices by MKL, which keeps to AVX2 on processors that are not Intel's: half the speed of
    oneDNN there, the same on Intel's. torch's own compiler chooses by itself.
    """
    # Quantised and adapted layers are of another type, or have a forward of their own.
    if type(layer) is nn.Linear and x.device.type == "cpu" and x.dtype == torch.float32 and not is_compiling():
        weight = layer.weight
        rows = x.numel() // x.shape[-1]
        # torch's operator has no gradient.
        if rows >= _ONEDNN_ROWS and not weight.requires_grad and _has_onednn():
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
            return product
    out: Tensor = layer(x)
    return out


@cache
def _has_onednn() -> bool:
    """Whether this build of torch has oneDNN and its operator; looked up at the first product, then kept."""
    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def run_block(
    block: Any,
    video: Tensor,
    text: Tensor,
    activated: Tensor,
    rows: Sequence[AttendedRow],
    mask: Tensor | None,
    rope: Rope,
) -> tuple[Tensor, Tensor]:
    """One block: joint attention and a feed-forward, each scaled and gated by the time and prompt embedding.

    Args:
        block: diffusers' `MochiTransformerBlock`.
        video: [B, N, D] tokens.
        text: [B, L, D'] tokens.
        activated: [B, D] SiLU of the time and prompt embedding; the same for all blocks of a step.
        rows: see `joint_attention`, as `mask` and `rope`.

    Returns:
        [B, N, D] and [B, L, D']; the last block leaves the text as it was.
    """

    def attention(attn: Any, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return joint_attention(attn, video, text, rows, mask, rope)

    return block_around(attention, block, video, text, activated)


def block_around(
    attention: JointAttention, block: Any, video: Tensor, text: Tensor, activated: Tensor
) -> tuple[Tensor, Tensor]:
    """`run_block` with the attention to use; so that it may be another one where the block is compiled."""
    scale, gate, mlp_scale, mlp_gate = _modulation(block.norm1.linear, activated)
    eps = block.norm1.norm.eps
    if block.context_pre_only:
        text_scale = 1 + fast_linear(block.norm1_context.linear_1, activated).float()[:, None]
    else:
        text_scale, text_gate, text_mlp_scale, text_mlp_gate = _modulation(block.norm1_context.linear, activated)
    attended, text_attended = attention(block.attn1, _scaled(video, scale, eps), _scaled(text, text_scale, eps))
    video = _feed_forward(block.ff, _add_gated(video, attended, gate, eps), mlp_scale, mlp_gate, eps)
    if block.context_pre_only:
        return video, text
    text = _add_gated(text, text_attended, text_gate, eps)
    return video, _feed_forward(block.ff_context, text, text_mlp_scale, text_mlp_gate, eps)


def _modulation(layer: nn.Module, activated: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1 + scale and tanh(gate) of attention, then of the feed-forward; each [B, 1, D] fp32."""
    scale, gate, mlp_scale, mlp_gate = fast_linear(layer, activated).float()[:, None].chunk(4, dim=-1)
    return 1 + scale, gate.tanh(), 1 + mlp_scale, mlp_gate.tanh()


def _feed_forward(layer: Any, tokens: Tensor, scale: Tensor, gate: Tensor, eps: float) -> Tensor:
    """SwiGLU with residual."""
    value, activation = fast_linear(layer.net[0].proj, _scaled(tokens, scale, eps)).chunk(2, dim=-1)
    return _add_gated(tokens, fast_linear(layer.net[2], F.silu(activation).mul_(value)), gate, eps)


def _scaled(tokens: Tensor, scale: Tensor, eps: float) -> Tensor:
    """norm(tokens) * scale, in fp32."""
    return F.rms_norm(tokens.float(), tokens.shape[-1:], eps=eps).mul_(scale).to(tokens.dtype)


def _add_gated(tokens: Tensor, change: Tensor, gate: Tensor, eps: float) -> Tensor:
    """tokens + norm(change) * gate, in fp32."""
    change = F.rms_norm(change.float(), change.shape[-1:], eps=eps)
    return torch.addcmul(tokens.float(), change, gate).to(tokens.dtype)


def joint_attention(
    attn: Any,
    video: Tensor,
    text: Tensor,
    rows: Sequence[AttendedRow],
    mask: Tensor | None,
    rope: Rope,
) -> tuple[Tensor, Tensor]:
    """Mochi's attention over [video tokens, the row's own text tokens].

    diffusers' `MochiAttnProcessor2_0` finds the valid text tokens with `nonzero(mask)`: one device sync for each
    row and layer. Prompts are padded on the right, so their lengths, known on the host, say the same; without
    `mask` the result is bitwise equal on the CPU where `fast_linear` calls the layers themselves.

    Args:
        attn: diffusers' `MochiAttention`.
        video: [B, N, D] tokens.
        text: [B, L, D'] tokens.
        rows: B; with a mask their lengths are read for attention in 8 bits alone.
        mask: see `joint_mask`.
        rope: see `Rope`.

    Returns:
        [B, N, D] and [B, L, D']. With a mask the padding of the text holds finite values without meaning.
    """

    def heads(layer: nn.Module, tokens: Tensor) -> Tensor:
        return fast_linear(layer, tokens).view(*tokens.shape[:2], attn.heads, -1)

    query = rotate(norm_heads(heads(attn.to_q, video), attn.norm_q), rope)
    key = rotate(norm_heads(heads(attn.to_k, video), attn.norm_k), rope)
    text_query = norm_heads(heads(attn.add_q_proj, text), attn.norm_added_q)
    text_key = norm_heads(heads(attn.add_k_proj, text), attn.norm_added_k)
    out = _attend(
        torch.cat([query, text_query], dim=1).transpose(1, 2),
        torch.cat([key, text_key], dim=1).transpose(1, 2),
        torch.cat([heads(attn.to_v, video), heads(attn.add_v_proj, text)], dim=1).transpose(1, 2),
        [(video.shape[1] + row.text, row.fp8) for row in rows],
        mask,
    )
    out = out.transpose(1, 2).flatten(2)
    return project_out(attn, out[:, : video.shape[1]], out[:, video.shape[1] :])


def project_out(attn: Any, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The last products of `MochiAttention`, [B, N, D] and [B, L, D] to [B, N, D] and [B, L, D']."""
    new_video = fast_linear(attn.to_out[0], video)
    new_text = text
    if hasattr(attn, "to_add_out"):  # the last block has none: nobody reads its text
        new_text = fast_linear(attn.to_add_out, new_text)
    return new_video, new_text


def joint_mask(rows: Sequence[AttendedRow], video: int, text: int, device: torch.device) -> Tensor | None:
    """Which keys each row sees, bool [B, 1, 1, video + text]; None where attention does without.

    On the CPU one masked call for rows of several lengths costs less than a call a row. On a GPU a mask would rule
    out the fast kernels, and making it would wait for the device.
    """
    lengths = [row.text for row in rows]
    if device.type != "cpu" or set(lengths) == {text}:
        return None
    return (torch.arange(video + text) < torch.tensor(lengths)[:, None] + video)[:, None, None]


def _attend(query: Tensor, key: Tensor, value: Tensor, rows: Sequence[tuple[int, bool]], mask: Tensor | None) -> Tensor:
    """[B, heads, S, d]; of each row the tokens of video and text, and whether in 8 bits. One call if they allow it."""
    if query.device.type == "cpu":
        for row, (length, fp8) in enumerate(rows):
            if fp8:  # rounded here, so that one call can do for all rows
                own = [part[row, :, :length].transpose(0, 1) for part in (query, key, value)]
                for part, rounded in zip(own, round_to_fp8(*own), strict=True):
                    part.copy_(rounded)
        rows = [(length, False) for length, _ in rows]
    if mask is not None or (query.device.type == "cpu" and set(rows) == {(query.shape[2], False)}):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return torch.stack([_attend_row(query[i], key[i], value[i], length, fp8) for i, (length, fp8) in enumerate(rows)])


def _attend_row(query: Tensor, key: Tensor, value: Tensor, length: int, fp8: bool) -> Tensor:
    """Attention among the first `length` tokens of one row, zero for the padding behind. [heads, S, d]."""
    attend = attend_fp8 if fp8 else attend_full
    out = attend(*(part[:, :length].transpose(0, 1) for part in (query, key, value))).transpose(0, 1)
    return F.pad(out, (0, 0, 0, query.shape[1] - length))


def norm_heads(heads: Tensor, norm: Any) -> Tensor:
    """RMS norm of each head. heads: [..., d]."""
    return F.rms_norm(heads, norm.weight.shape, norm.weight.to(heads.dtype), norm.eps)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary position embedding of even/odd pairs, in fp32. x: [B, N, heads, d].

    As complex numbers: one pass in place of nine. torch's compiler fuses the nine but not complex numbers.
    """
    pairs = x.float().view(*x.shape[:-1], -1, 2)
    if rope.is_complex():
        turned = torch.view_as_real(torch.view_as_complex(pairs) * rope)
    else:
        even, odd = pairs.unbind(-1)
        cos, sin = rope.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
