"""What every part of the GPU benchmark is made of: rows that are measured one by one, and the model they share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from benchmarks.common import full_size as fs
from benchmarks.common.flops import forward_flops, stock_step_flops, video_tokens
from benchmarks.gpu_parts.measuring import rounded, tflops
from deployments.clip import LatentShape
from deployments.messages import VideoSpec
from deployments.mochi.compiled_block import CompiledBlock
from deployments.mochi.denoise import Sample

DTYPE = torch.bfloat16
STEPS = 64

Values = dict[str, Any]


class NotHereError(Exception):
    """This device or this environment lacks what a row needs; the message names it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table. Measured by whoever runs the parts, who outlives what `measure` raises."""

    table: str
    name: str
    measure: Callable[[], Values]


Rows = Iterator[Row]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that share something built for them."""

    name: str
    needs_s: float  # seconds on an H100, reckoned with room to spare; with less time left it is not begun
    rows: Callable[["Bench"], Rows]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is."""

    width: int = 848
    height: int = 480
    long_frames: int = 163
    short_frames: int = 85
    engine_frames: int = 25
    text_tokens: int = fs.TEXT_TOKENS
    prompt_length: int = fs.PROMPT_LENGTH
    other_lengths: tuple[int, ...] = (41, 100)
    heads: int = 24
    head_dim: int = 128
    caption: int = 1536
    block_tokens: int = 4096
    square: int = 8192
    copy_bytes: int = 2 * 1024**3
    load_s: float = 6
    file_tensors: tuple[int, int] = (16, 2**26)
    probes: tuple[LatentShape, LatentShape] = ((12, 4, 32, 32), (12, 16, 32, 32))
    convolutions: tuple[tuple[int, int, int, int], ...] = (
        (768, 3, 62, 108),
        (512, 5, 122, 214),
        (256, 8, 242, 426),
        (128, 8, 482, 850),
    )
    included: VideoSpec = field(default_factory=partial(fs.clip_spec, 96, 96, 37, steps=8))
    # Differences from Mochi 1's own architecture.
    transformer: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] = field(default_factory=dict)

    @property
    def model_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def lengths(self) -> list[int]:
        """Text tokens of the negative prompt and of the prompt."""
        return [fs.NEGATIVE_LENGTH, self.prompt_length]


FULL = Sizes()
TINY = Sizes(
    width=32,
    height=32,
    long_frames=7,
    short_frames=7,
    engine_frames=7,
    text_tokens=8,
    prompt_length=5,
    other_lengths=(3, 7),
    heads=3,
    head_dim=16,
    caption=24,
    block_tokens=48,
    square=64,
    copy_bytes=2**20,
    load_s=0.01,
    file_tensors=(2, 2**12),
    probes=((12, 2, 8, 8), (12, 8, 8, 8)),
    convolutions=((8, 3, 6, 6),),
    included=fs.clip_spec(64, 64, 7, steps=2),
    # So wide that all its products are over multiples of 16 numbers: of others, oneDNN's bfloat16 kernels for AMX read
    # past the end of a row, times zero, and a NaN in the next row gets into this one.
    transformer=fs.TINY | {"num_attention_heads": 3},
    vae=fs.TINY_VAE,
    text_encoder={"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2},
)


@dataclass(frozen=True, slots=True)
class Clip:
    """What a step of one video starts from, and how many operations it takes."""

    transformer: Any
    spec: VideoSpec
    prompt: fs.Prompt
    negative: fs.Prompt
    sample: Sample  # before its first step
    lengths: list[int]  # text tokens of the negative prompt and of the prompt

    @property
    def prompts(self) -> tuple[fs.Prompt, fs.Prompt]:
        return self.prompt, self.negative

    def our_operations(self) -> int:
        shape = self.spec.clip.latents
        return forward_flops(self.transformer.config, shape, self.lengths, max(self.lengths)).total

    def stock_operations(self) -> int:
        shape = self.spec.clip.latents
        padded = len(self.prompt.mask)
        return stock_step_flops(self.transformer.config, shape, self.lengths, padded).total


class Bench:
    """The device, the sizes, and what several parts use."""

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device = device
        self.sizes = sizes
        self.best_product = 0.0  # the fastest bf16 product so far, TFLOP/s: other rates are held against it
        self._transformer: Any = None

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def compiled_block(self) -> CompiledBlock:
        return self.new_compiled_block()

    def new_compiled_block(self) -> CompiledBlock:
        """The sampler's compiled block; off CUDA traced alone, since compiling takes minutes."""
        return CompiledBlock(self.sizes.text_tokens, "inductor" if self.on_cuda else "eager")

    def transformer(self) -> Any:
        """Built when first asked for, then kept."""
        if self._transformer is None:
            self._transformer = fs.random_transformer(self.device, DTYPE, **self.sizes.transformer)
        return self._transformer

    def take_transformer(self) -> Any:
        """For a part that changes the weights: whoever comes later gets new ones."""
        transformer = self.transformer()
        self._transformer = None
        return transformer

    def spec(self, frames: int) -> VideoSpec:
        return fs.clip_spec(self.sizes.width, self.sizes.height, frames, STEPS)

    def tokens(self, frames: int) -> int:
        """Video tokens of one row."""
        return video_tokens({"patch_size": 2}, self.spec(frames).clip.latents)

    def clip(self, transformer: Any, frames: int, length: int | None = None) -> Clip:
        """Before its first step. length: of the prompt, text tokens."""
        dim = transformer.config.text_embed_dim
        padded = self.sizes.text_tokens
        length = length or self.sizes.prompt_length
        prompt = fs.random_prompt(dim, length, padded, seed=1)
        negative = fs.random_prompt(dim, fs.NEGATIVE_LENGTH, padded, seed=2)
        spec = self.spec(frames)
        sample = fs.our_sample(transformer, spec, prompt, negative)
        return Clip(transformer, spec, prompt, negative, sample, [fs.NEGATIVE_LENGTH, length])

    def rate(self, operations: int, ms: float) -> Values:
        """TFLOP/s, and its share of the best product if that is known."""
        rate = tflops(operations, ms)
        found: Values = {"tflops": rounded(rate)}
        if self.best_product:
            found["of_ceiling"] = round(rate / self.best_product, 3)
        return found
