"""Our kernels for norm and activation, in Triton's interpreter on the CPU: `make kernels-test` installs Triton for it.

On a GPU they are compared with the same in `benchmarks/gpu.py`, part `norms`.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from deployments.mochi.decoder_layers import norm_silu
from deployments.mochi.streaming_decode import fastest_norm
from tests.support import ROOT
from tests.support.waiting import PATIENCE_S

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

# In a process of its own: Triton reads the variable when the kernels are defined.
PROGRAM = """
import json, sys
import torch
import torch.nn.functional as F
from deployments.mochi.norm_kernels import norm_silu

torch.manual_seed(0)
errors = {}
for frames, channels, height, width, groups in json.loads(sys.argv[1]):
    for dtype in (torch.float32, torch.bfloat16):
        values = (2 * torch.randn(frames, height, width, channels) + 50).to(dtype).permute(0, 3, 1, 2)
        whole = torch.full((frames, height + 2, width + 2, channels), 7.0, dtype=dtype)
        out = whole.permute(0, 3, 1, 2)[..., 1:-1, 1:-1]
        weight, bias = torch.randn(channels, dtype=dtype), torch.randn(channels, dtype=dtype)
        norm_silu(values, weight, bias, groups, 1e-5, out)
        wanted = F.silu(F.group_norm(values.double(), groups, weight.double(), bias.double(), 1e-5))
        assert torch.equal(whole[:, 0], torch.full_like(whole[:, 0], 7.0)), "it wrote beside its place"
        name = f"{frames}x{channels}x{height}x{width} {str(dtype).removeprefix('torch.')}"
        errors[name] = float((out.double() - wanted).norm() / wanted.norm())
print(json.dumps(errors))
"""
SHAPES = [(2, 64, 5, 7, 32), (3, 96, 40, 30, 32), (1, 768, 6, 9, 32), (2, 128, 33, 35, 32), (1, 32, 3, 4, 32)]
LIMITS = {"float32": 3e-6, "bfloat16": 5e-3}


@needs_triton
def test_the_kernels_compute_what_torch_does() -> None:
    """Values far from zero, so that squaring before centring would show; sizes that fill no tile."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(SHAPES)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    errors: dict[str, float] = json.loads(done.stdout)
    assert len(errors) == 2 * len(SHAPES)
    assert {name: error for name, error in errors.items() if not error < LIMITS[name.split()[1]]} == {}


def test_they_are_for_gpus_and_one_layout_alone() -> None:
    cuda = torch.device("cuda:0")
    assert fastest_norm(torch.device("cpu"), torch.channels_last_3d) is norm_silu
    assert fastest_norm(cuda, torch.contiguous_format) is norm_silu
    chosen = fastest_norm(cuda, torch.channels_last_3d)
    assert chosen.__module__.endswith("norm_kernels" if find_spec("triton") else "decoder_layers")
