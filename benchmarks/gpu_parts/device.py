"""What the driver tells of the device, and how errors of it look: whether the replica reads them rightly."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.gpu_parts.bench import Bench, NotHereError, Row, Rows, Values
from benchmarks.gpu_parts.measuring import first_ms, rounded
from deployments.replica.device_check import check_arithmetic, gpu_problem, installation
from deployments.replica.gpu_state import gpu_watch, why_unfit

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60

# Each in a process of its own: the first line breaks something, and what follows is what a replica does then.
SETUP = """
import json, torch
from deployments.replica.device_check import check_arithmetic
from deployments.replica.device_errors import device_failure
device = torch.device("cuda:0")
kept = torch.ones(1000, device=device)
found = {}

def tell(name, work):
    try:
        work()
        torch.cuda.synchronize()
    except BaseException as error:
        text = str(error).splitlines()
        found[name] = [type(error).__name__, text[0][:160] if text else "", str(device_failure(error))]
    else:
        found[name] = None
"""
AFTER = """
tell("copy", lambda: kept.cpu())
tell("arithmetic", lambda: check_arithmetic(device))
print(json.dumps(found))
"""
BREAKS = {
    "index out of range": 'tell("first", lambda: kept[torch.tensor([5000], device=device)])',
    "no memory": 'tell("first", lambda: torch.empty(10**13, dtype=torch.uint8, device=device))',
    "no memory of a share": (
        "torch.cuda.set_per_process_memory_fraction(0.1, device)\n"
        'tell("first", lambda: torch.empty(10**10, dtype=torch.uint8, device=device))'
    ),
    "product of wrong shapes": ('matrix = torch.ones(3, 4, device=device)\ntell("first", lambda: matrix @ matrix)'),
}
HIDDEN = """
import json, torch
from deployments.replica.device_check import advice, gpu_problem, installation
print(json.dumps({"problem": gpu_problem(torch.device("cuda:0")), "advice": advice(installation())}))
"""


def device(bench: Bench) -> Rows:
    """NVML's figures, the check of arithmetic, errors made on purpose."""
    yield Row("device", "what the driver says", partial(_state, bench))
    yield Row("device", "check of arithmetic", partial(_check, bench))
    for name, line in BREAKS.items():
        yield Row("device error", name, partial(_broken, bench, SETUP + line + AFTER))
    yield Row("device error", "no GPU is visible", partial(_broken, bench, HIDDEN, CUDA_VISIBLE_DEVICES=""))


def _state(bench: Bench) -> Values:
    watch = gpu_watch(bench.device)
    figures = []
    first = first_ms(bench.device, lambda: figures.append(watch.look()))
    ms = first_ms(bench.device, lambda: figures.append(watch.look()))
    told = {name: value for name, value in asdict(figures[-1]).items() if value is not None}
    return {"first_ms": rounded(first), "ms": rounded(ms), **told, "unfit": why_unfit(figures[-1])}


def _check(bench: Bench) -> Values:
    check_arithmetic(bench.device)
    ms = first_ms(bench.device, lambda: check_arithmetic(bench.device))
    return {"ms": rounded(ms), "unfit": gpu_problem(bench.device), "driver": installation().driver}


def _broken(bench: Bench, program: str, **environment: str) -> Values:
    """What each thing raised: its type, first line, and what it means to the replica."""
    if not bench.on_cuda:
        raise NotHereError("needs CUDA")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    told: Values = json.loads(done.stdout.splitlines()[-1])
    return told
