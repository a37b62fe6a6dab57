"""One clip on an idle server: from POST to completed, split by stage, and the memory of the whole stack.

    python benchmarks/single_clip.py                # starts a server of its own, as `make serve` does
    python benchmarks/single_clip.py --url http://127.0.0.1:8000

Prints a table and, last, one line of JSON. Memory is the proportional set size (PSS) of the server's process tree; it
is measured only for a server that this script started.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.servers.server import running_server

POLL_S = 0.01
PARTS = ("encode", "sample", "decode", "mp4")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a running server; without it one is started")
    parser.add_argument("--clips", type=int, default=20)
    arguments = parser.parse_args()
    with _server(arguments.url) as (url, tree):
        clips = [measure(url, n) for n in range(arguments.clips + 2)][2:]
        memory = None if tree is None else pss_gb(tree)
    report(clips, memory)


@contextmanager
def _server(url: str | None) -> Iterator[tuple[str, psutil.Process | None]]:
    if url is not None:
        yield url, None
        return
    with tempfile.TemporaryDirectory(prefix="mochi-bench-") as folder, running_server(Path(folder)) as server:
        yield server.url, psutil.Process(server.process.pid)


def measure(url: str, seed: int) -> dict[str, float]:
    """Seconds of one default clip: `total` as the client sees it, and the stages as the workers report them."""
    with httpx.Client(base_url=url, timeout=30) as client:
        start = time.perf_counter()
        video = client.post("/v1/videos", json={"prompt": "a red circle moving right", "seed": seed}).json()
        while video["status"] in ("queued", "in_progress"):
            time.sleep(POLL_S)
            video = client.get(f"/v1/videos/{video['id']}").json()
        total = time.perf_counter() - start
    if video["status"] != "completed":
        raise SystemExit(f"{video['id']} ended as {video['status']}: {video['error']}")
    return split(total, video["timings"])


def split(total: float, timings: dict[str, float]) -> dict[str, float]:
    """The four parts that make the clip, and what is left: HTTP, SQL, storage, dispatch, polling."""
    parts = {
        "encode": timings["encoding.encode"],
        "sample": timings["sampling.denoise"],
        "decode": timings["decoding.decode"],
        "mp4": timings["decoding.mp4"],
    }
    storage = sum(seconds for name, seconds in timings.items() if name.endswith((".load", ".store")))
    return {"total": total, **parts, "outside": total - sum(parts.values()), "of which storage": storage}


def pss_gb(tree: psutil.Process) -> float:
    """Proportional set size of a process and its descendants, GB (10^9 bytes); Linux only."""
    return sum(_pss(process.pid) for process in [tree, *tree.children(recursive=True)]) / 1e9


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it ended in the meantime
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def report(clips: list[dict[str, float]], memory_gb: float | None) -> None:
    table = Table("seconds", "median", "min", "max", title=f"One clip, {len(clips)} runs, idle server")
    medians: dict[str, Any] = {}
    for name in clips[0]:
        values = [clip[name] for clip in clips]
        medians[name] = round(statistics.median(values), 4)
        table.add_row(name, f"{medians[name]:.3f}", f"{min(values):.3f}", f"{max(values):.3f}")
    console = Console()
    console.print(table)
    if memory_gb is not None:
        console.print(f"Memory of the whole stack: {memory_gb:.2f} GB (PSS)")
    result = {"benchmark": "single_clip", "clips": len(clips), "median_s": medians, "pss_gb": memory_gb}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
