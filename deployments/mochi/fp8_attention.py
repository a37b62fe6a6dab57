"""Attention of 8-bit numbers (e4m3), by cuDNN on the GPUs that multiply them, and what it rounds, on any device.

What is rounded is chosen such that little is lost. From keys and values their mean over all tokens is taken: the first
moves all scores of a query alike and so changes nothing (SageAttention, arXiv 2410.02367), the second comes back with
the result, since the weights of a query add up to one. Values are scaled for each channel. The weights and the result
are e4m3 inside the kernel as well.

All scales are of one row's own tokens: a row is the same alone and in a batch. Without the kernel the same numbers are
rounded and attended in the dtype of the model, which shows what the 8 bits cost a picture and is no faster.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.mochi.full_attention import attend_full

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
PROBABILITY_SCALE = 256.0  # of softmax's weights, 0 to 1
LEAST = 1e-12  # that is divided by
CAPABILITY = (9, 0)  # of CUDA devices, from which cuDNN has the kernel: Hopper
PLANS = 64  # kept of one process: one for each number of tokens, the last ones used
PACKAGE = "nvidia-cudnn-frontend"


def check_fp8_attention(dtype: DtypeName, device: torch.device) -> None:
    """Raise what is wrong where a GPU cannot do it; a CPU rounds and is no faster.

    Raises:
        PermanentError: `attention_unsupported`.
    """
    if device.type != "cuda":
        return
    problem = fp8_attention_problem(dtype, torch.cuda.get_device_capability(device))
    if problem is not None:
        raise PermanentError("attention_unsupported", f"a quality has attention: fp8, {problem}; or take it out")


def fp8_attention_problem(dtype: DtypeName, capability: tuple[int, int]) -> str | None:
    """What is missing, and what to do; None if nothing is.

    Args:
        dtype: of the model.
        capability: of the CUDA device.
    """
    if capability < CAPABILITY:
        found, least = (".".join(map(str, version)) for version in (capability, CAPABILITY))
        return f"which needs a GPU of compute capability {least} or more (H100, H200), and here is {found}"
    if dtype != "bfloat16":
        return f"which is for bfloat16, and the sampler's dtype is {dtype}: set sampler.dtype"
    missing = [name for name, module in ((PACKAGE, "cudnn"), ("triton", "triton")) if find_spec(module) is None]
    return f"which needs {' and '.join(missing)}: install mochi-serve[hopper]" if missing else None


def attend_fp8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one row among all its tokens, in 8 bits.

    Args:
        query, key, value: [S, heads, d].

    Returns:
        [S, heads, d] in the same dtype.
    """
    if query.is_cuda:
        return _kernel(query.device)(query, key, value)
    return attend_full(*round_to_fp8(query, key, value))


def round_to_fp8(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel multiplies, in the dtype that it came in; the keys without their mean.

    Args:
        query, key, value: [S, heads, d] of one row.
    """
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    key, mean = key - key.mean(0), value.mean(0)
    query, key = (_rounded(part, _scale(part.abs().amax())) for part in (query, key))
    value = _rounded(value - mean, _scale((value - mean).abs().amax(0))) + mean
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _scale(largest: Tensor) -> Tensor:
    """What a number is divided by to be e4m3."""
    return largest.clamp_min(LEAST) / LARGEST


def _rounded(values: Tensor, scale: Tensor) -> Tensor:
    return (values / scale).to(E4M3).float() * scale


@cache
def _kernel(device: torch.device) -> "Fp8Attention":
    return Fp8Attention(device)


@dataclass(frozen=True, slots=True)
class _Plan:
    """cuDNN's for one size, and what its inputs and outputs are called."""

    graph: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    workspace: Tensor


class Fp8Attention:
    """cuDNN's kernel on one GPU, for one thread at a time.

    Args:
        device: a GPU.

    Raises:
        ModuleNotFoundError: `nvidia-cudnn-frontend` or Triton is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        import cudnn  # not above: it is optional, as is Triton

        from deployments.mochi import fp8_kernels

        self._cudnn = cudnn
        self._kernels = fp8_kernels
        self._device = device
        self._handle = cudnn.create_handle()
        self._plans: OrderedDict[torch.Size, _Plan] = OrderedDict()
        one = torch.ones(1, device=device)
        self._constants = {"descale_v": one, "scale_o": one}
        self._constants |= {"descale_s": one / PROBABILITY_SCALE, "scale_s": one * PROBABILITY_SCALE}
        self._amax = {name: torch.empty(1, device=device) for name in ("amax_s", "amax_o")}  # that nobody reads

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `attend_fp8`, in bf16."""
        size = query.shape
        query, key, value = (part.flatten(1) for part in (query, key, value))  # copied where heads lie apart
        kernels = self._kernels
        _, least, largest = kernels.channel_statistics(query)
        query_scale = _scale(torch.maximum(-least, largest).amax())
        key_mean, least, largest = kernels.channel_statistics(key)
        key_scale = _scale(torch.maximum(key_mean - least, largest - key_mean).amax())
        mean, least, largest = kernels.channel_statistics(value)
        scale = _scale(torch.maximum(mean - least, largest - mean))
        tensors = {
            "q": kernels.scale_channels(query, torch.zeros_like(mean), (1 / query_scale).expand_as(mean), E4M3),
            "k": kernels.scale_channels(key, key_mean, (1 / key_scale).expand_as(mean), E4M3),
            "v": kernels.scale_channels(value, mean, 1 / scale, E4M3),
            "descale_q": query_scale.reshape(1),
            "descale_k": key_scale.reshape(1),
        }
        out: Tensor = kernels.scale_channels(self._run(size, tensors), -mean / scale, scale, query.dtype)
        return out.view(size)

    def _run(self, size: torch.Size, tensors: dict[str, Tensor]) -> Tensor:
        plan = self._plan(size)
        out = torch.empty_like(tensors["q"])
        variables = {plan.inputs[name]: _as_bytes(tensor) for name, tensor in (tensors | self._constants).items()}
        variables |= {plan.outputs["o"]: _as_bytes(out)}
        variables |= {plan.outputs[name]: tensor for name, tensor in self._amax.items()}
        self._cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream(self._device).cuda_stream)
        plan.graph.execute(variables, plan.workspace, handle=self._handle)
        return out

    def _plan(self, size: torch.Size) -> _Plan:
        """Made when a number of tokens is first met."""
        if size in self._plans:
            self._plans.move_to_end(size)
            return self._plans[size]
        graph, inputs, outputs = _described(self._cudnn, self._handle, *size)
        graph.build([self._cudnn.heur_mode.A])
        workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=self._device)
        if len(self._plans) >= PLANS:
            self._plans.popitem(last=False)
        self._plans[size] = plan = _Plan(graph, inputs, outputs, workspace)
        return plan


def _described(
    cudnn: Any, handle: Any, tokens: int, heads: int, dim: int
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """cuDNN's graph, with its inputs and outputs by name. On Hopper it writes e4m3 alone."""
    fp8, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=fp8, intermediate_data_type=fp32, compute_data_type=fp32, handle=handle)
    sizes, strides = [1, heads, tokens, dim], [tokens * heads * dim, dim, heads * dim, 1]
    inputs = {name: graph.tensor(name=name, dim=sizes, stride=strides, data_type=fp8) for name in ("q", "k", "v")}
    for name in ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o"):
        inputs[name] = graph.tensor(name=name, dim=[1] * 4, stride=[1] * 4, data_type=fp32)
    out, _, amax_s, amax_o = graph.sdpa_fp8(**inputs, generate_stats=False, attn_scale=1 / math.sqrt(dim))
    out.set_output(True).set_dim(sizes).set_stride(strides).set_data_type(fp8)
    for amax in (amax_s, amax_o):
        amax.set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(fp32)
    return graph, inputs, {"o": out, "amax_s": amax_s, "amax_o": amax_o}


def _as_bytes(values: Tensor) -> Tensor:
    """The same memory, of a type that each version of cuDNN's package takes."""
    return values.view(torch.int8) if values.dtype == E4M3 else values
