"""Weights of the transformer in 8 bits: half of the memory of bf16, with a scale for each row of a matrix.

Two forms. `int8` keeps the weights of all blocks so and multiplies in the model's dtype: a weight is brought back to it
for each product, which costs little beside the product of some ten thousand tokens. `fp8` also brings the tokens to 8
bits, each with a scale of its own, and multiplies there: that is faster on GPUs that can, and it is done where it pays,
in the layers that see the video tokens.

Both are what torchao calls `Int8WeightOnlyConfig` and `Float8DynamicActivationFloat8WeightConfig(PerRow())`, on torch's
own operators. torchao is not used: diffusers imports it wherever it is installed, which takes every process seconds,
and it makes no fp8 weight where there is no such GPU.
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.dtypes import DtypeName, WeightsName
from deployments.errors import PermanentError

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
INT8_MAX = 127  # symmetric: -128 is not used
LEAST_SCALE = torch.finfo(torch.float32).eps
FP8_CAPABILITY = (8, 9)  # of CUDA devices; the first with products of fp8: Ada, then Hopper

LAYERS: dict[WeightsName, re.Pattern[str]] = {
    "int8": re.compile(r"transformer_blocks\.\d+\..+"),
    "fp8": re.compile(r"transformer_blocks\.\d+\.(attn1\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))"),
}
"""Names of the `nn.Linear` whose weights are brought to 8 bits. Text has too few tokens to gain from fp8."""


def check_weights(weights: WeightsName | None, dtype: DtypeName, device: torch.device) -> None:
    """Raises PermanentError `weights_unsupported` if the device cannot multiply with such weights."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    problem = fp8_problem(dtype, capability) if weights == "fp8" else None
    if problem is not None:
        raise PermanentError("weights_unsupported", f"model.weights is fp8: {problem}")


def fp8_problem(dtype: DtypeName, capability: tuple[int, int] | None) -> str | None:
    """Why fp8 cannot be used, and what to do; None if it can.

    Args:
        dtype: of the model.
        capability: of the CUDA device; None: it is another one.
    """
    if capability is None or capability < FP8_CAPABILITY:
        found = "no GPU" if capability is None else f"one of {'.'.join(map(str, capability))}"
        least = ".".join(map(str, FP8_CAPABILITY))
        return f"it needs a GPU of compute capability {least} or more (L4, L40S, H100), and here is {found}; set int8"
    if dtype != "bfloat16":
        return f"its products are bfloat16, and the sampler's dtype is {dtype}; set sampler.dtype to bfloat16"
    return None


class QuantisedLinear(nn.Module):
    """As `nn.Linear`, with a weight of 8 bits."""

    values: Tensor  # [outputs, inputs] int8 or float8_e4m3fn
    scale: Tensor  # [outputs, 1] fp32

    def __init__(self, values: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.bias = bias


class Int8Linear(QuantisedLinear):
    """The weight is brought back to the dtype of what it is multiplied with."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        # The weight is scaled and not the product, which is larger.
        return F.linear(tokens, (self.values * self.scale).to(tokens.dtype), self.bias)


class Fp8Linear(QuantisedLinear):
    """The tokens are brought to fp8 too, each with a scale of its own. On CUDA they must be bf16."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        rows, scale = quantised(tokens.flatten(0, -2), "fp8")
        product: Tensor = torch._scaled_mm(
            rows,
            self.values.t(),
            scale_a=scale,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=tokens.dtype,
            use_fast_accum=True,
        )
        return product.view(*tokens.shape[:-1], -1)


LINEAR: dict[WeightsName, type[QuantisedLinear]] = {"int8": Int8Linear, "fp8": Fp8Linear}


def quantised(matrix: Tensor, weights: WeightsName) -> tuple[Tensor, Tensor]:
    """[rows, columns] in 8 bits, and the scale of each row [rows, 1] fp32: their product is the matrix, nearly."""
    highest = matrix.abs().amax(dim=-1, keepdim=True).float()
    if weights == "int8":
        scale = (highest / INT8_MAX).clamp(min=LEAST_SCALE)
        return (matrix / scale).round_().to(torch.int8), scale
    scale = (highest / FP8_MAX).clamp(min=LEAST_SCALE)
    return (matrix / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def quantise(transformer: Any, weights: WeightsName) -> frozenset[str]:
    """Bring layers of diffusers' `MochiTransformer3DModel` to 8 bits in place, one after the other.

    On the device `meta` they then wait for what `quantised_tensors` makes.

    Returns:
        The names that their weights had.
    """
    layers = {
        name: layer
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and LAYERS[weights].fullmatch(name)
    }
    for name, layer in layers.items():
        transformer.set_submodule(name, LINEAR[weights](*quantised(layer.weight.detach(), weights), layer.bias))
    return frozenset(f"{name}.weight" for name in layers)


def quantised_tensors(name: str, weight: Tensor, weights: WeightsName) -> dict[str, Tensor]:
    """The tensors that a layer has by their names, in place of its `weight` of this name."""
    layer = name.removesuffix("weight")
    values, scale = quantised(weight, weights)
    return {f"{layer}values": values, f"{layer}scale": scale}
