"""Attention of 8-bit numbers (e4m3) by cuDNN, on GPUs that multiply them: Hopper and newer.

What is rounded is chosen such that little is lost. From the keys their mean over all tokens is taken, which moves all
scores of a query alike and so changes nothing; the values are scaled for each channel, and the result back.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # that e4m3 holds
PROBABILITY_SCALE = 256.0  # of softmax's weights, 0 to 1
OUT_TYPES = {"BFLOAT16": torch.bfloat16, "HALF": torch.float16, "FP8_E4M3": E4M3}
LEAST = 1e-12  # that is divided by


@dataclass(frozen=True, slots=True)
class _Graph:
    """cuDNN's plan for one size, and what its inputs and outputs are called."""

    graph: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    workspace: Tensor


class Fp8Attention:
    """Keeps a plan for each size that it meets.

    Args:
        device: a GPU.
        out_type: cuDNN's name of what it writes.

    Raises:
        ModuleNotFoundError: `nvidia-cudnn-frontend` is not installed.
    """

    def __init__(self, device: torch.device, out_type: str = "BFLOAT16") -> None:
        import cudnn  # not above: it is optional

        self._cudnn = cudnn
        self._device = device
        self._out_type = out_type
        self._handle = cudnn.create_handle()
        self._graphs: dict[torch.Size, _Graph] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of one row among all its tokens.

        Args:
            query, key, value: [S, heads, d] bf16.

        Returns:
            [S, heads, d] bf16.
        """
        centred = key - key.float().mean(0).to(key.dtype)
        channels = value.abs().amax(0, keepdim=True).float().clamp_min(LEAST) / LARGEST
        quantised = {"q": _quantised(query), "k": _quantised(centred)}
        tensors = {name: values for name, (values, _) in quantised.items()}
        tensors |= {"v": (value / channels).to(E4M3)}
        tensors |= {f"descale_{name}": scale for name, (_, scale) in quantised.items()}
        return (self._run(tensors).to(value.dtype)) * channels.to(value.dtype)

    def _run(self, tensors: dict[str, Tensor]) -> Tensor:
        tokens, heads, dim = size = tensors["q"].shape
        if size not in self._graphs:
            self._graphs[size] = self._build(tokens, heads, dim)
        planned = self._graphs[size]
        out = torch.empty(size, dtype=OUT_TYPES[self._out_type], device=self._device)
        one = torch.ones(1, device=self._device)
        tensors |= {"descale_v": one, "descale_s": one / PROBABILITY_SCALE, "scale_s": one * PROBABILITY_SCALE}
        tensors |= {"scale_o": one}
        variables = {planned.inputs[name]: _as_bytes(tensor) for name, tensor in tensors.items()}
        variables |= {planned.outputs["o"]: _as_bytes(out)}
        variables |= {planned.outputs[name]: torch.empty(1, device=self._device) for name in ("amax_s", "amax_o")}
        self._cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream(self._device).cuda_stream)
        planned.graph.execute(variables, planned.workspace, handle=self._handle)
        return out

    def _build(self, tokens: int, heads: int, dim: int) -> _Graph:
        graph, inputs, outputs = described(self._cudnn, self._handle, self._out_type, tokens, heads, dim)
        graph.build([self._cudnn.heur_mode.A])
        workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=self._device)
        return _Graph(graph, inputs, outputs, workspace)


def described(
    cudnn: Any, handle: Any, out_type: str, tokens: int, heads: int, dim: int
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """cuDNN's graph, with its inputs and outputs by name."""
    fp8, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=fp8, intermediate_data_type=fp32, compute_data_type=fp32, handle=handle)
    sizes, strides = [1, heads, tokens, dim], [tokens * heads * dim, dim, heads * dim, 1]
    inputs = {name: graph.tensor(name=name, dim=sizes, stride=strides, data_type=fp8) for name in ("q", "k", "v")}
    for name in ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o"):
        inputs[name] = graph.tensor(name=name, dim=[1] * 4, stride=[1] * 4, data_type=fp32)
    out, _, amax_s, amax_o = graph.sdpa_fp8(**inputs, generate_stats=False, attn_scale=1 / math.sqrt(dim))
    out.set_output(True).set_dim(sizes).set_stride(strides).set_data_type(getattr(cudnn.data_type, out_type))
    for amax in (amax_s, amax_o):
        amax.set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(fp32)
    return graph, inputs, {"o": out, "amax_s": amax_s, "amax_o": amax_o}


def _quantised(values: Tensor) -> tuple[Tensor, Tensor]:
    """In e4m3, and what to multiply them by, [1] fp32."""
    scale = values.abs().amax().float().clamp_min(LEAST) / LARGEST
    return (values / scale).to(E4M3), scale.reshape(1)


def _as_bytes(values: Tensor) -> Tensor:
    """The same memory, of a type that each version of cuDNN's package takes."""
    return values.view(torch.int8) if values.dtype == E4M3 else values
