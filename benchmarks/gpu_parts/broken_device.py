"""What a process sees after it has broken its device, and whether the sampler would know it for that.

python -m benchmarks.gpu_parts.broken_device KIND      # breaks the device for this process, prints a line of JSON
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_parts.bench import Bench, NotHereError, Row, Rows, Values
from deployments.mochi.fp8_attention import attend_fp8
from deployments.mochi.full_attention import attend_full
from deployments.replica.device_errors import DeviceFailure, device_failure
from deployments.replica.gpu_state import GpuWatch, NoGpuWatch, gpu_watch

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60
LONGEST = 160  # characters kept of a message
DEVICE = "cuda:0"


def broken_device(bench: Bench) -> Rows:
    """Each kind in a process of its own; and what NVML tells of the device beside them."""
    if not bench.on_cuda:
        raise NotHereError("needs CUDA")
    watch = gpu_watch(bench.device)
    for kind, (_, wanted) in KINDS.items():
        yield Row("broken", kind, partial(_in_a_process, kind, wanted))
    yield Row("broken", "this process, afterwards", partial(_matmul_works, bench))
    yield Row("broken", "what NVML tells", partial(_nvml, watch))


def _in_a_process(kind: str, wanted: DeviceFailure) -> Values:
    command = [sys.executable, "-m", "benchmarks.gpu_parts.broken_device", kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    lines = done.stdout.splitlines()
    if not lines:
        raise RuntimeError(f"it ended with {done.returncode}: {done.stderr[-300:]}")
    found: Values = json.loads(lines[-1])
    return found | {"as_it_should": all(error["failure"] == wanted for error in found["errors"])}


def _matmul_works(bench: Bench) -> Values:
    side = torch.ones(256, 256, device=bench.device)
    return {"works": bool((side @ side == 256).all())}


def _nvml(watch: GpuWatch | NoGpuWatch) -> Values:
    """What a sampler reads before it takes a task; the Xids are those of the processes before."""
    return {"problem": watch.problem(), **asdict(watch.look())}


def _device_assert() -> object:
    return torch.zeros(4, device=DEVICE)[torch.tensor([9], device=DEVICE)].cpu()


def _illegal_access() -> object:
    _run_kernel(far=True)
    return torch.zeros(1, device=DEVICE).cpu()


def _trap() -> object:
    _run_kernel(far=False)
    return torch.zeros(1, device=DEVICE).cpu()


def _synchronise() -> None:
    torch.cuda.synchronize()


def _out_of_memory() -> object:
    return [torch.empty(2**36, dtype=torch.uint8, device=DEVICE) for _ in range(8)]


def _run_kernel(far: bool) -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def break_it(at: Any, far: tl.constexpr) -> None:
        if far:
            tl.store(at + (1 << 40), 1.0)
        else:
            tl.inline_asm_elementwise("trap; mov.u32 $0, $1;", "=r,r", [tl.program_id(0)], tl.int32, False, 1)

    break_it[(1,)](torch.zeros(4, device=DEVICE), far)


def _matmul() -> object:
    side = torch.ones(256, 256, device=DEVICE)
    return (side @ side).cpu()


def _convolution() -> object:
    return F.conv2d(torch.ones(1, 8, 16, 16, device=DEVICE), torch.ones(8, 8, 3, 3, device=DEVICE)).cpu()


def _attention() -> object:
    side = torch.ones(1, 2, 64, 64, device=DEVICE, dtype=torch.bfloat16)
    return F.scaled_dot_product_attention(side, side, side).cpu()


def _full_attention() -> object:
    return attend_full(*_HEADS).cpu()


def _fp8_attention() -> object:
    return attend_fp8(*_HEADS).cpu()


_HEADS: list[torch.Tensor] = []  # of a process that is to break its device

KINDS: dict[str, tuple[Callable[[], object], DeviceFailure]] = {
    "assert on the device": (_device_assert, DeviceFailure.BROKEN),
    "illegal access": (_illegal_access, DeviceFailure.BROKEN),
    "trap": (_trap, DeviceFailure.BROKEN),
    "out of memory": (_out_of_memory, DeviceFailure.OUT_OF_MEMORY),
}
# What a sampler or decoder would call next in a process whose device is lost.
NEXT: tuple[Callable[[], object], ...] = (
    _matmul,
    _convolution,
    _attention,
    _full_attention,
    _fp8_attention,
    _synchronise,
    _out_of_memory,
)


def main(kind: str) -> None:
    _HEADS.extend(torch.ones(3, 256, 24, 128, device=DEVICE, dtype=torch.bfloat16).unbind())
    for call in (_matmul, _full_attention, _fp8_attention):  # which compile and load what they need
        call()
    breaks, wanted = KINDS[kind]
    calls = (breaks, *NEXT) if wanted is DeviceFailure.BROKEN else (breaks,)
    errors = [found for call in calls if (found := _error_of(call)) is not None]
    print(json.dumps({"errors": errors}))


def _error_of(call: Callable[[], object]) -> dict[str, Any] | None:
    try:
        call()
    except Exception as error:
        name = getattr(call, "__name__", str(call))
        told = {"call": name, "type": type(error).__name__, "says": str(error).splitlines()[0][:LONGEST]}
        return told | {"failure": device_failure(error)}
    return None


if __name__ == "__main__":
    main(sys.argv[1])
