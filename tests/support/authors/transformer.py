"""The authors' transformer (dit/joint_model: `AsymmDiTJoint`), one row at a time, over its valid text tokens alone.

Weights come under diffusers' names. Two of its layouts are not the authors', whose converter swaps them: the halves of
a feed-forward's first product (theirs: activation, value) and of the last modulation (theirs: shift, scale).
All is computed in fp64 but what the authors compute in fp32 from large numbers: the timestep's angles.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_EPS = 1e-6
HEAD_EPS = 1e-5
POOL_HEADS = 8
TIMESTEP_SCALE = 1000.0
TIMESTEP_PERIOD = 10_000
ROPE_AREA = 36_864
PATCH = 2

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Text:
    """An encoded prompt: features [L, D] of the text encoder and which of them are of tokens, [L] bool."""

    features: Tensor
    mask: Tensor

    @property
    def tokens(self) -> Tensor:
        """[length, D], fp64; none for a prompt without a token."""
        return self.features[self.mask].double()


class Transformer:
    """AsymmDiT with these weights.

    Args:
        weights: a `state_dict` of diffusers' class.
        heads: of the attention.
        layers: blocks, the last of which leaves the text as it is.
    """

    def __init__(self, weights: Mapping[str, Tensor], heads: int, layers: int) -> None:
        self._weights = {name: tensor.double() for name, tensor in weights.items()}
        self._heads = heads
        self._layers = layers

    def velocity(self, latents: Tensor, sigma: float, text: Text) -> Tensor:
        """What the model predicts of [12, T, h, w] at a noise of `sigma`, 1 at the beginning."""
        video = self._embed_patches(latents.double())
        condition = self._embed_time(sigma) + self._pool(text.tokens)
        words = self._linear("time_embed.caption_proj", text.tokens)
        angles = self._angles(latents.shape)
        for index in range(self._layers):
            video, words = self._block(f"transformer_blocks.{index}", video, words, silu(condition), angles)
        scale, shift = self._linear("norm_out.linear", silu(condition)).chunk(2)
        centred = video - video.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + BLOCK_EPS).sqrt()
        return _as_latents(self._linear("proj_out", normed * (1 + scale) + shift), latents.shape)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _embed_patches(self, latents: Tensor) -> Tensor:
        """[12, T, h, w] to [N, D]: tokens in the order of time, rows, columns."""
        channels, frames, height, width = latents.shape
        patches = latents.reshape(channels, frames, height // PATCH, PATCH, width // PATCH, PATCH)
        tokens = torch.einsum("ctyaxb,dcab->tyxd", patches, self._weights["patch_embed.proj.weight"])
        return tokens.flatten(0, 2) + self._weights["patch_embed.proj.bias"]

    def _embed_time(self, sigma: float) -> Tensor:
        timestep = (1 - torch.tensor(sigma, dtype=torch.float32)) * TIMESTEP_SCALE
        half = self._weights["time_embed.timestep_embedder.linear_1.weight"].shape[1] // 2
        angles = timestep * torch.exp(-math.log(TIMESTEP_PERIOD) / half * torch.arange(half, dtype=torch.float32))
        embedded = self._linear(
            "time_embed.timestep_embedder.linear_1", torch.cat([angles.cos(), angles.sin()]).double()
        )
        return self._linear("time_embed.timestep_embedder.linear_2", silu(embedded))

    def _pool(self, tokens: Tensor) -> Tensor:
        """The mean token looks at itself and at all tokens; it is zero where there are none."""
        mean = tokens.sum(0) / max(1, len(tokens))
        keys, values = self._linear("time_embed.pooler.to_kv", torch.stack([mean, *tokens])).chunk(2, dim=-1)
        query, keys, values = (
            split_heads(x, POOL_HEADS) for x in (self._linear("time_embed.pooler.to_q", mean[None]), keys, values)
        )
        return self._linear("time_embed.pooler.to_out", attend(query, keys, values)[0])

    def _angles(self, shape: torch.Size) -> Tensor:
        """[N, heads, d / 2]: learned frequencies of time, row and column, summed."""
        _, frames, height, width = shape
        rows, columns = height // PATCH, width // PATCH
        scale = math.sqrt(ROPE_AREA / (rows * columns))
        positions = [
            ((t, (y + 0.5 - rows / 2) * scale, (x + 0.5 - columns / 2) * scale))
            for t in range(frames)
            for y in range(rows)
            for x in range(columns)
        ]
        return torch.einsum("nd,dhf->nhf", torch.tensor(positions).double(), self._weights["pos_frequencies"])

    def _block(self, name: str, video: Tensor, words: Tensor, condition: Tensor, angles: Tensor) -> Pair:
        last = f"{name}.norm1_context.linear.weight" not in self._weights
        scale, gate, ff_scale, ff_gate = self._linear(f"{name}.norm1.linear", condition).chunk(4)
        if last:
            text_scale = self._linear(f"{name}.norm1_context.linear_1", condition)
        else:
            text_scale, text_gate, text_ff_scale, text_ff_gate = self._linear(
                f"{name}.norm1_context.linear", condition
            ).chunk(4)
        change, text_change = self._attention(
            f"{name}.attn1", rms_norm(video) * (1 + scale), rms_norm(words) * (1 + text_scale), angles, last
        )
        video = video + rms_norm(change) * gate.tanh()
        video = self._feed_forward(f"{name}.ff", video, ff_scale, ff_gate)
        if last:
            return video, words
        words = words + rms_norm(text_change) * text_gate.tanh()
        return video, self._feed_forward(f"{name}.ff_context", words, text_ff_scale, text_ff_gate)

    def _feed_forward(self, name: str, tokens: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        value, activation = self._linear(f"{name}.net.0.proj", rms_norm(tokens) * (1 + scale)).chunk(2, dim=-1)
        change = self._linear(f"{name}.net.2", silu(activation) * value)
        return tokens + rms_norm(change) * gate.tanh()

    def _attention(self, name: str, video: Tensor, words: Tensor, angles: Tensor, last: bool) -> Pair:
        """Each token of the video and of the text looks at all of both."""

        def heads(layer: str, tokens: Tensor, norm: str | None = None) -> Tensor:
            split = split_heads(self._linear(f"{name}.{layer}", tokens), self._heads)
            return split if norm is None else rms_norm(split, HEAD_EPS) * self._weights[f"{name}.{norm}.weight"]

        query = torch.cat([rotate(heads("to_q", video, "norm_q"), angles), heads("add_q_proj", words, "norm_added_q")])
        key = torch.cat([rotate(heads("to_k", video, "norm_k"), angles), heads("add_k_proj", words, "norm_added_k")])
        value = torch.cat([heads("to_v", video), heads("add_v_proj", words)])
        seen = attend(query, key, value)
        out = self._linear(f"{name}.to_out.0", seen[: len(video)])
        return out, words if last else self._linear(f"{name}.to_add_out", seen[len(video) :])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[n, heads x d] to [n, heads, d]."""
    return x.view(len(x), heads, x.shape[-1] // heads)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[queries, heads, d] over [keys, heads, d], to [queries, heads x d]."""
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Neighbours in d are a point in the plane, turned by the angle of their frequency."""
    points = torch.complex(x[..., 0::2], x[..., 1::2]) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(points).flatten(-2)


def rms_norm(x: Tensor, eps: float = BLOCK_EPS) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def _as_latents(tokens: Tensor, shape: torch.Size) -> Tensor:
    """[N, p x p x C] to [C, T, h, w]."""
    _, frames, height, width = shape
    grid = tokens.reshape(frames, height // PATCH, width // PATCH, PATCH, PATCH, -1)
    return torch.einsum("tyxabc->ctyaxb", grid).reshape(shape)
