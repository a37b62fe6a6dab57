"""Mochi 1 on one GPU: every part of a video against the device's own ceilings and the stock pipeline.

    python benchmarks/gpu.py --out results.jsonl
    python benchmarks/gpu.py --only products,long_steps --minutes 4
    python benchmarks/gpu.py --dry                   # on a CPU with a tiny model: does every part run?

Needs torch, diffusers, transformers, safetensors, pydantic and rich; where minio, SageAttention or what `mochi-
serve[hopper]` brings are missing, the rows that need them say so or take torch's attention. Needs neither Ray nor
weights: they are random, built on the device from a seed. Meant for a GPU with 80 GB. Prints a line of JSON for each
figure as soon as it is known, last the tables.
"""

import argparse
import gc
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, installed_version
from benchmarks.gpu_parts import broken_device, ceilings, decoding, device, engine, exactness, loading, one_card, steps
from benchmarks.gpu_parts.bench import FULL, TINY, Bench, NotHereError, Part, Values
from benchmarks.gpu_parts.results import Results, machine_table, print_tables

# In the order of worth: when time runs short, the last ones go.
PARTS = (
    Part("device", 30, device.device),
    Part("products", 20, ceilings.products),
    Part("attention", 20, ceilings.attention),
    Part("included_model", 20, exactness.included_model),
    Part("block", 15, exactness.block),
    Part("long_steps", 70, steps.long_steps),
    Part("convolutions", 15, decoding.convolutions),
    Part("norms", 10, decoding.norms),
    Part("our_decoder", 30, decoding.our_decoder),
    Part("compiled_steps", 130, steps.compiled_steps),
    Part("qualities", 40, engine.qualities),
    Part("engine", 40, engine.engine),
    Part("other_prompts", 60, steps.other_prompts),
    Part("whole_video", 80, engine.whole_video),
    Part("memory", 25, steps.memory),
    Part("fp8_attention", 10, ceilings.fp8_attention),
    Part("fp8_steps", 130, steps.fp8_steps),
    Part("one_card", 60, one_card.one_card),
    Part("broken_device", 60, broken_device.broken_device),
    Part("loading", 20, loading.loading),
    Part("text_encoder", 15, loading.text_encoder),
    Part("stock_decoder", 40, decoding.stock_decoder),
    Part("short_steps", 60, steps.short_steps),
)
OPTIONAL = (
    "triton",
    "nvidia-cudnn-frontend",
    "flash-attn-4",
    "nvidia-cutlass-dsl",
    "sageattention",
    "safetensors",
    "pydantic",
)
NO_GPU = "no GPU: torch.cuda.is_available() is false, so nothing was measured; --dry tries every part on the CPU"


def main() -> None:
    begun = time.perf_counter()
    arguments = _arguments()
    if not arguments.dry and not torch.cuda.is_available():
        print(NO_GPU)
        return
    for message in ("In CPU autocast", "`torch_dtype` is deprecated"):
        warnings.filterwarnings("ignore", message=message)
    torch.manual_seed(0)
    bench = Bench(torch.device("cpu"), TINY) if arguments.dry else Bench(torch.device("cuda:0"), FULL)
    results = Results(arguments.out)
    machine = describe(bench)
    results.add(benchmark="gpu", dry=arguments.dry, machine=machine)
    run_parts(arguments.only, bench, results, deadline=begun + 60 * arguments.minutes)
    console = Console(width=None if sys.stdout.isatty() else 120)
    print_tables(console, results.lines)
    console.print(machine_table(machine))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="begin no part that may take longer than is left")
    parser.add_argument("--only", type=chosen, default=PARTS, metavar="PART,PART", help="run these parts alone")
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU, to see that every part runs")
    parser.add_argument("--out", type=Path, help="also append the lines of JSON to this file")
    return parser.parse_args()


def chosen(names: str) -> tuple[Part, ...]:
    """The parts named, in their own order."""
    wanted = set(names.split(","))
    names_of_parts = [part.name for part in PARTS]
    if unknown := wanted.difference(names_of_parts):
        message = f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(names_of_parts)}"
        raise argparse.ArgumentTypeError(message)
    return tuple(part for part in PARTS if part.name in wanted)


def describe(bench: Bench) -> Values:
    """The machine, and on CUDA what the process holds of the device before anything is built."""
    described = describe_machine(bench.device) | {name: installed_version(name) for name in OPTIONAL}
    if bench.on_cuda:
        free, total = torch.cuda.mem_get_info(bench.device)
        described["taken_at_start_gb"] = round((total - free) / 1e9, 2)
    return described


def run_parts(parts: Sequence[Part], bench: Bench, results: Results, deadline: float) -> None:
    """Run what there is time for. deadline: by `time.perf_counter`."""
    for part in parts:
        begun = time.perf_counter()
        left = deadline - begun
        if left < part.needs_s:
            found: Values = {"skipped": f"{max(0, left):.0f} s are left, it may take {part.needs_s}"}
        else:
            with torch.no_grad():
                found = outcome(partial(run_part, part, bench, results))
        free(bench)
        results.add(part=part.name, took_s=round(time.perf_counter() - begun, 1), **found)


def run_part(part: Part, bench: Bench, results: Results) -> Values:
    """Measure row after row: what one raises costs the others nothing."""
    for row in part.rows(bench):
        found = outcome(row.measure)
        if "failed" in found:
            free(bench)
        results.add(part=part.name, table=row.table, name=row.name, **found)
    return {}


def outcome(work: Callable[[], Values]) -> Values:
    """What `work` found, or why it found nothing: minutes on a GPU are not lost to one error."""
    try:
        return work()
    except (NotHereError, ModuleNotFoundError) as error:
        return {"skipped": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:400], "where": traceback.format_exc()[-700:]}


def free(bench: Bench) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if bench.on_cuda:
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
