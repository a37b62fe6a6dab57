"""Mochi's joint attention with a mask for the whole batch: it can be trained, batched and compiled.

diffusers' own processor loops over the samples. For the video tokens, and the valid text tokens, this one gives
the same; padding is carried along and seen by none.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskedAttention:
    """A processor for diffusers' `MochiAttention`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            hidden_states: [B, N, D] video tokens. encoder_hidden_states: [B, L, D'] text tokens.
            attention_mask: [B, L] bool, true for the valid text tokens.
            image_rotary_emb: cos and sin, each [N, heads, head_dim / 2].

        Returns:
            [B, N, D] and [B, L, D'].
        """
        heads = attn.heads
        value = _split(attn.to_v(hidden_states), heads)
        query = _rotate(attn.norm_q(_split(attn.to_q(hidden_states), heads)), image_rotary_emb)
        key = _rotate(attn.norm_k(_split(attn.to_k(hidden_states), heads)), image_rotary_emb)
        text_query = attn.norm_added_q(_split(attn.add_q_proj(encoder_hidden_states), heads))
        text_key = attn.norm_added_k(_split(attn.add_k_proj(encoder_hidden_states), heads))
        text_value = _split(attn.add_v_proj(encoder_hidden_states), heads)
        count = hidden_states.shape[1]
        mask = F.pad(attention_mask, (count, 0), value=True)[:, None, None]
        attended = F.scaled_dot_product_attention(
            _join(query, text_query, value.dtype),
            _join(key, text_key, value.dtype),
            _join(value, text_value, value.dtype),
            attn_mask=mask,
        )
        video, text = attended.transpose(1, 2).flatten(2).split_with_sizes((count, text_value.shape[1]), dim=1)
        # The last block has no use for its text.
        return attn.to_out[0](video), attn.to_add_out(text) if hasattr(attn, "to_add_out") else text


def _split(tokens: Tensor, heads: int) -> Tensor:
    return tokens.view(*tokens.shape[:2], heads, -1)


def _join(video: Tensor, text: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, heads, N + L, head_dim]."""
    return torch.cat([video.to(dtype), text.to(dtype)], dim=1).transpose(1, 2)


def _rotate(tokens: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of neighbouring channels by its angle, in fp32."""
    cos, sin = rope
    even, odd = tokens[..., 0::2].float(), tokens[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
