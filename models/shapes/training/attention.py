"""Mochi's joint attention as the server computes it, with one mask for a whole batch: to train, and to compile."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from deployments.mochi.block import joint_attention


class MaskedAttention:
    """A processor for diffusers' `MochiAttention`, whose own one loops over the samples."""

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
            attention_mask: [B, L] bool, true for the valid text tokens; padding is carried along and seen by none.
            image_rotary_emb: cos and sin, each [N, heads, head_dim / 2].

        Returns:
            [B, N, D] and [B, L, D'].
        """
        mask = F.pad(attention_mask, (hidden_states.shape[1], 0), value=True)[:, None, None]
        parts = torch.stack(image_rotary_emb, dim=-1)
        rope = parts if is_compiling() else torch.view_as_complex(parts)
        return joint_attention(attn, hidden_states, encoder_hidden_states, (), mask, rope)
