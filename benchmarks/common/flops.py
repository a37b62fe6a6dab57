"""How many floating-point operations a step of Mochi takes: formulas from the architecture.

A product of [m, k] and [k, n] counts 2mkn, attention of s tokens 4 s^2 D (scores and weighted sum). Sums, norms and
activations are left out, as is usual; they cost time by their memory traffic. Checked against torch's own counter in
tests/tools/benchmarks/test_scripts.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deployments.clip import LatentShape

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations, a multiplication and an addition each counted."""

    linear: int  # matrix products with weights
    attention: int  # scores and weighted sums

    @property
    def total(self) -> int:
        return self.linear + self.attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.linear + other.linear, self.attention + other.attention)


def video_tokens(config: Config, shape: LatentShape) -> int:
    """Tokens of latents [12, T, h, w]: T x h/p x w/p."""
    _, frames, height, width = shape
    patch: int = config["patch_size"]
    return frames * (height // patch) * (width // patch)


def forward_flops(config: Config, shape: LatentShape, lengths: Sequence[int], text_tokens: int) -> Flops:
    """One forward pass of the transformer from projected text.

    Args:
        config: of `MochiTransformer3DModel`.
        shape: of the latents of one row.
        lengths: valid text tokens of each row: attention runs over them and the video tokens.
        text_tokens: text tokens that go through the linear layers of each row, padding included.
    """
    video = video_tokens(config, shape)
    per_row = linear_flops(config, video, text_tokens)
    attention = sum(attention_flops(config, video + length) for length in lengths)
    return Flops(per_row * len(lengths), attention)


def attention_flops(config: Config, tokens: int) -> int:
    """All blocks' attention over `tokens` tokens of one row: 4 s^2 D a block."""
    blocks: int = config["num_layers"]
    return 4 * blocks * tokens**2 * _width(config)


def linear_flops(config: Config, video: int, text: int) -> int:
    """All matrix products with weights for one row: patches in and out, the blocks, modulations, time embedding."""
    width, caption, blocks = _sizes(config)
    patch_values: int = config["patch_size"] ** 2
    per_video_token = blocks * (4 * width * width + 3 * width * _inner(width))
    channels: int = config["in_channels"] + (config["out_channels"] or config["in_channels"])
    per_video_token += patch_values * channels * width
    per_text_token = blocks * 3 * caption * width + (blocks - 1) * (width * caption + 3 * caption * _inner(caption))
    return 2 * (video * per_video_token + text * per_text_token + _per_row(config))


def _per_row(config: Config) -> int:
    """Multiplications of the layers that see one vector a row; the last block only scales its text."""
    width, caption, blocks = _sizes(config)
    modulations = blocks * 4 * width * width + (blocks - 1) * 4 * caption * width + caption * width
    time_proj: int = config["time_embed_dim"]
    time_embedding = time_proj * width + width * width
    norm_out = 2 * width * width
    return modulations + time_embedding + norm_out


def conditioning_flops(config: Config, text: int) -> Flops:
    """Projecting and pooling the text of one row; the stock pipeline does it at every step.

    text: tokens, padding included.
    """
    embed = config["text_embed_dim"]
    width = _width(config)
    caption = config["pooled_projection_dim"]
    projection = text * embed * caption
    pooler = (text + 1) * embed * 2 * embed + embed * embed + embed * width
    return Flops(2 * (projection + pooler), 4 * (text + 1) * embed)


def rope_flops(config: Config, shape: LatentShape) -> int:
    """Angles from positions: [N, 3] times [3, D / 2]; for all rows, and in the stock pipeline at every step."""
    return 3 * video_tokens(config, shape) * _width(config)


def stock_step_flops(config: Config, shape: LatentShape, lengths: Sequence[int], text_tokens: int) -> Flops:
    """What `MochiPipeline` computes in one step: the forward pass and all that is constant for a request.

    lengths: of the negative prompt and the prompt. text_tokens: what every prompt is padded to.
    """
    total = forward_flops(config, shape, lengths, text_tokens) + Flops(rope_flops(config, shape), 0)
    for _ in lengths:
        total += conditioning_flops(config, text_tokens)
    return total


def counted_flops(module: nn.Module, *inputs: Tensor) -> int:
    """What torch counts for one call; on the meta device nothing is computed or held."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


def _sizes(config: Config) -> tuple[int, int, int]:
    """Width of the video tokens, width of the text tokens, blocks."""
    return _width(config), config["pooled_projection_dim"], config["num_layers"]


def _width(config: Config) -> int:
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    return width


def _inner(width: int) -> int:
    """The feed-forward's inner width, as diffusers rounds it."""
    return (4 * width * 2) // 3
