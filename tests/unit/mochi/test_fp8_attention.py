"""Attention in 8 bits: what is rounded, where it is refused, and its kernels in Triton's interpreter
(`make kernels-test`). The kernel that multiplies is measured on a GPU by `benchmarks/gpu.py`, part `fp8_attention`."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.mochi import fp8_attention
from deployments.mochi.fp8_attention import (
    attend_fp8,
    check_fp8_attention,
    fp8_attention_problem,
    round_to_fp8,
)
from deployments.mochi.full_attention import attend_full
from tests.support import ROOT
from tests.support.waiting import PATIENCE_S

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
HOPPER, ADA = (9, 0), (8, 9)

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def heads(seed: int, tokens: int = 300, count: int = 3, dim: int = 32) -> list[Tensor]:
    """Queries, keys and values as a model has them: of channels of unlike sizes, keys and values off zero."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, tokens, count, dim, generator=generator)
    sizes = torch.rand(3, count, dim, generator=generator) * 4 + 0.1
    return [query * sizes[0], key * sizes[1] + 5, value * sizes[2] - 7]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def test_it_is_attention_but_for_rounding() -> None:
    parts = heads(1)
    got, wanted = attend_fp8(*parts), attend_full(*parts)
    assert 1e-4 < relative_error(got, wanted) < 0.05


def test_each_number_is_off_by_no_more_than_e4m3_is() -> None:
    """Three bits behind the point: half a sixteenth; and near zero, a step of the smallest that it has."""
    query, key, value = heads(2)
    rounded = round_to_fp8(query, key, value)
    for before, after, largest in (
        (query, rounded[0], query.abs().amax()),
        (key - key.mean(0), rounded[1], (key - key.mean(0)).abs().amax()),
        (value - value.mean(0), rounded[2] - value.mean(0), (value - value.mean(0)).abs().amax(0)),
    ):
        bound = before.abs() / 16 + largest * 2**-9 / 448 + 1e-5
        assert bool(((before - after).abs() <= bound).all())


def test_what_all_tokens_have_in_common_is_not_rounded() -> None:
    """Keys moved alike change no score, and values moved alike move the result and nothing else."""
    query, key, value = heads(3)
    moved = attend_fp8(query, key + 100, value + 1000)
    torch.testing.assert_close(moved - 1000, attend_fp8(query, key, value), rtol=0.02, atol=0.02)
    same = torch.full_like(value, 0.1)
    # But for the rounding of the mean in float32, which grows with the tokens; in 8 bits it would be some percent.
    torch.testing.assert_close(attend_fp8(query, key, same), same, rtol=1e-5, atol=0)


def test_nothing_becomes_of_nothing() -> None:
    zeros = torch.zeros(4, 2, 8)
    assert torch.equal(attend_fp8(zeros, zeros, zeros), zeros)


@pytest.mark.parametrize(
    ("dtype", "capability", "has", "problem"),
    [
        ("bfloat16", HOPPER, True, None),
        ("bfloat16", ADA, True, "needs a GPU of compute capability 9.0 or more (H100, H200), and here is 8.9"),
        ("float32", HOPPER, True, "the sampler's dtype is float32: set sampler.dtype"),
        ("bfloat16", HOPPER, False, "needs nvidia-cudnn-frontend and triton: install mochi-serve[hopper]"),
    ],
)
def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, dtype: DtypeName, capability: tuple[int, int], has: bool, problem: str | None
) -> None:
    monkeypatch.setattr(fp8_attention, "find_spec", lambda name: object() if has else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    told = fp8_attention_problem(dtype, capability)
    assert told == problem or (problem is not None and told is not None and problem in told)
    check_fp8_attention(dtype, CPU)
    if problem is None:
        check_fp8_attention(dtype, CUDA)
        return
    with pytest.raises(PermanentError, match="a quality has attention: fp8, which .*; or take it out") as caught:
        check_fp8_attention(dtype, CUDA)
    assert caught.value.code == "attention_unsupported"


# In a process of its own: Triton reads the variable when the kernels are defined.
PROGRAM = """
import json, sys
import torch
from deployments.mochi.fp8_kernels import channel_statistics, scale_channels

torch.manual_seed(0)
for tokens, channels in json.loads(sys.argv[1]):
    whole = (2 * torch.randn(tokens, channels + 8) + 5).bfloat16()
    values = whole[:, :channels]  # rows that lie apart
    mean, least, largest = channel_statistics(values)
    assert torch.equal(least, values.float().amin(0)) and torch.equal(largest, values.float().amax(0))
    torch.testing.assert_close(mean, values.float().mean(0), rtol=1e-5, atol=1e-5)
    scale = 65504 / (values.float() - mean).abs().amax(0) * 1.5  # some are too large
    got = scale_channels(values, mean, scale, torch.float16)
    wanted = ((values.float() - mean) * scale).clamp(-65504, 65504).half()
    torch.testing.assert_close(got, wanted)
    assert float(got.abs().amax()) == 65504
    # The interpreter rounds to e4m3 wrongly where the exponent changes, so what is written needs no rounding.
    held = wanted.mul(0.005).to(torch.float8_e4m3fn).float()
    one = torch.ones(channels)
    eight_bits = scale_channels(held, 0 * one, one, torch.float8_e4m3fn)
    assert torch.equal(eight_bits.float(), held)
    back = scale_channels(eight_bits, -mean * scale, 1 / scale, torch.bfloat16)
    torch.testing.assert_close(back, (held / scale + mean).bfloat16())
"""
SIZES = [(5, 96), (600, 256), (33, 130), (1024, 128)]


@needs_triton
def test_the_kernels_compute_what_torch_does() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(SIZES)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
