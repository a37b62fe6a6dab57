"""What it takes to load a transformer of Mochi's width: bytes read, host memory, and seconds, beside `cat`.

    python benchmarks/loading.py
    python benchmarks/loading.py --layers 1 --rounds 1 --out results.json

A folder is made as Mochi 1 is published, fp32 and bf16 shards side by side, with random weights. Each loading is a
process of its own. `cold` means that the system was asked to forget the files before, `warm` that it has them.
"""

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
STEM = "diffusion_pytorch_model"
VARIANTS = {"": torch.float32, ".bf16": torch.bfloat16}
SHARDS = 3
MEMORY_BAR = 1.1  # of the bytes that are read, the most that host memory may grow by
RATE_BAR = 0.8  # of cat's, the least


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="blocks of the transformer; one has 0.4 GB in bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made, of the disk to measure")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(load_once(arguments.child[0], Path(arguments.child[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="mochi-loading-", dir=arguments.folder) as made:
        folder = Path(made)
        make_model(folder, arguments.layers)
        rows = measure(folder, arguments.rounds)
    bars = judge(rows)
    Console(width=None if sys.stdout.isatty() else 140).print(table(rows))
    publish({"benchmark": "loading", "machine": describe_machine(CPU), "rows": rows, "bars": bars}, arguments.out)


def make_model(folder: Path, layers: int) -> None:
    """A transformer of Mochi's width with random weights, in both variants, in shards."""
    from diffusers import MochiTransformer3DModel
    from safetensors.torch import save_file

    part = folder / "transformer"
    part.mkdir()
    with torch.device("meta"):
        module = MochiTransformer3DModel(num_layers=layers)
    module.save_config(part)
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for number in range(SHARDS):
        own = {name: torch.empty(shapes[name]).normal_(generator=generator) for name in sorted(shapes)[number::SHARDS]}
        for variant, dtype in VARIANTS.items():
            cast = {name: tensor.to(dtype) for name, tensor in own.items()}
            save_file(cast, part / shard_name(variant, number))
    for variant in VARIANTS:
        places = {name: shard_name(variant, i) for i in range(SHARDS) for name in sorted(shapes)[i::SHARDS]}
        index = f"{STEM}.safetensors.index{variant}.json"
        (part / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    os.sync()


def shard_name(variant: str, number: int) -> str:
    return f"{STEM}{variant}-{number + 1:05}-of-{SHARDS:05}.safetensors"


def shards(folder: Path, variant: str) -> list[Path]:
    return [folder / "transformer" / shard_name(variant, number) for number in range(SHARDS)]


LOADINGS: dict[str, Callable[[Path], object]] = {}


def loading(name: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def add(load: Callable[[Path], object]) -> Callable[[Path], object]:
        LOADINGS[name] = load
        return load

    return add


@loading("ours, bf16")
def ours_bf16(folder: Path) -> object:
    from deployments.mochi.weights.loading import load_transformer

    return load_transformer(folder, "bfloat16", CPU)


@loading("ours, fp32")
def ours_fp32(folder: Path) -> object:
    from deployments.mochi.weights.loading import load_transformer

    return load_transformer(folder, "float32", CPU)


@loading("from_pretrained, bf16")
def stock(folder: Path) -> object:
    from diffusers import MochiTransformer3DModel

    return MochiTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)


@loading("fresh memory, bf16")
def fresh_memory(folder: Path) -> object:
    """As much memory as the files in bf16 take, filled: no loading that holds the weights is faster than that."""
    files = (folder / "transformer").glob("*bf16-*.safetensors")
    return torch.zeros(sum(path.stat().st_size for path in files), dtype=torch.uint8).add_(1)


def load_once(name: str, folder: Path) -> dict[str, Any]:
    """In a process of its own: load the included model, so that all code is there, then this one."""
    LOADINGS[name](ROOT / "models/shapes")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident set so far
    before, read_before = status("VmRSS"), rchar()
    begun = time.perf_counter()
    model = LOADINGS[name](folder)
    seconds = time.perf_counter() - begun
    result = {"seconds": seconds, "peak_bytes": status("VmHWM") - before, "read_bytes": rchar() - read_before}
    del model
    return result


def status(field: str) -> int:
    """A field of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def rchar() -> int:
    """Bytes that this process has read so far, mapped files left out."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    return [row for cold in (True, False) for row in measure_all(folder, rounds, cold)]


def measure_all(folder: Path, rounds: int, cold: bool) -> list[dict[str, Any]]:
    """All loadings take turns with cat; figures are medians."""
    files = [path for variant in VARIANTS for path in shards(folder, variant)]
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name in ("cat, bf16", "cat, fp32", *LOADINGS):
            for path in files:
                forget(path) if cold else path.read_bytes()
            run = run_cat if name.startswith("cat") else run_child
            found.setdefault(name, []).append(run(name, folder) | held(folder, cold))
    return [
        {"name": name, "cold": cold}
        | {key: statistics.median(run[key] for run in runs) for key in runs[0] if runs[0][key] is not None}
        for name, runs in found.items()
    ]


def run_cat(name: str, folder: Path) -> dict[str, Any]:
    files = shards(folder, ".bf16" if name.endswith("bf16") else "")
    begun = time.perf_counter()
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
    return {"seconds": time.perf_counter() - begun, "read_bytes": sum(path.stat().st_size for path in files)}


def run_child(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def forget(path: Path) -> None:
    """Have the system drop a file from its memory."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def held(folder: Path, cold: bool) -> dict[str, Any]:
    """Of each variant, bytes in the system's memory: those that were read, if there were none before."""
    names = {"fp32_read": "", "bf16_read": ".bf16"}
    return {key: sum(map(cached_bytes, shards(folder, name))) if cold else None for key, name in names.items()}


def cached_bytes(path: Path) -> int:
    """Of a file, in the system's memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (len(mapped) + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        states = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), states)
        del start
    if failed:
        raise OSError("mincore failed")
    return sum(state & 1 for state in states) * mmap.PAGESIZE


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must hold of our loading, with the figures."""
    by = {(row["name"], row["cold"]): row for row in rows}
    bars = []
    for dtype, other in (("bf16", "fp32"), ("fp32", "bf16")):
        ours = by[f"ours, {dtype}", True]
        bars.append(
            {"bar": f"{dtype}: other variant's share read", "found": ours[f"{other}_read"] / ours["read_bytes"]}
        )
        bars[-1] |= {"at most": 0.01}
        for cold in (True, False):
            ours, cat = by[f"ours, {dtype}", cold], by[f"cat, {dtype}", cold]
            state = "cold" if cold else "warm"
            memory = ours["peak_bytes"] / cat["read_bytes"]
            bars.append({"bar": f"{dtype}, {state}: memory of the files' size", "found": memory, "at most": MEMORY_BAR})
            rate = cat["seconds"] / ours["seconds"]
            bars.append({"bar": f"{dtype}, {state}: rate of cat's", "found": rate, "at least": RATE_BAR})
    for bar in bars:
        bar["holds"] = bar.get("at least", 0) <= bar["found"] <= bar.get("at most", float("inf"))
    return bars


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("", "files", "s", "GB/s", "read GB", "host memory GB", "fp32 GB", "bf16 GB")
    for row in rows:
        read = row.get("fp32_read", 0) + row.get("bf16_read", 0) or row["read_bytes"]
        figures = [row.get(key) for key in ("read_bytes", "peak_bytes", "fp32_read", "bf16_read")]
        cells = ["" if figure is None else f"{figure / 1e9:.2f}" for figure in figures]
        rate = f"{read / row['seconds'] / 1e9:.2f}"
        shown.add_row(row["name"], "cold" if row["cold"] else "warm", f"{row['seconds']:.2f}", rate, *cells)
    return shown


if __name__ == "__main__":
    main()
