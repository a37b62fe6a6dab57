"""A thousand clients at once: how many requests a second, how slow, and what a read costs beside one that does nothing.

    python benchmarks/load.py
    python benchmarks/load.py --users 200 --seconds 15 --out benchmarks/results/load.json

Starts a server as `mochi-serve serve` does, with the default profile, and a Serve app that does nothing behind the same
HTTP front. Locust's clients (`load_parts/users.py`) run in a process of their own. Prints tables and, last, one line of
JSON."""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from benchmarks.common.read_rate import read_rate
from benchmarks.dispatch import bench_server, run_all, wait_for_samplers, wait_until, whole_number, yes
from tests.support import ROOT
from tests.support.servers.server import Server

USERS_FILE = Path(__file__).with_name("load_parts") / "users.py"
NOOP = {"name": "noop", "route_prefix": "/noop", "import_path": "benchmarks.common.noop_app:noop"}
SPAWN_A_SECOND = 100
# Beyond the time to measure: for the clients to start and to end.
SPARE_S = 120
RATE_BAR = 300.0
P95_BAR_MS = 2000.0
RATIO_BAR = 0.7
KINDS = ("status", "poll", "list", "submit", "events", "download")


def main() -> None:
    arguments = _arguments()
    with bench_server({}) as server:
        wait_for_samplers(server, 1)
        deploy_beside(server)
        _, (video_id,) = run_all(server, [2])
        load = run_load(server, arguments)
        wait_until_idle(server)
        reads = compare_reads(server, video_id, arguments)
    for table in (load_table(load), reads_table(reads)):
        Console().print(table)
    machine = describe_machine(torch.device("cpu")) | {"locust": version("locust")}
    publish({"benchmark": "load", "machine": machine, "load": load, "reads": reads}, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=whole_number, default=1000, help="clients at once")
    parser.add_argument("--seconds", type=whole_number, default=180, help="to measure, once all clients are there")
    parser.add_argument("--videos-a-second", type=float, default=4.0, help="submitted by all clients together")
    parser.add_argument("--callers", type=whole_number, default=32, help="connections of the comparison of reads")
    parser.add_argument("--rounds", type=whole_number, default=15, help="of the comparison, both apps in turn")
    parser.add_argument("--round-seconds", type=whole_number, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


# Both apps


def deploy_beside(server: Server) -> None:
    """Deploy the app that does nothing into the running Serve, with the server's own applications as they are."""
    tree = yaml.safe_load((server.data.parent / "serve_config.yaml").read_text())
    tree["applications"].append(NOOP)
    token = (server.data / "ray-token").read_text().strip()
    dashboard = f"http://127.0.0.1:{server.ports[1]}/api/serve/applications/"
    answer = httpx.put(dashboard, json=tree, headers={"Authorization": f"Bearer {token}"}, timeout=60)
    if answer.status_code != 200:
        raise SystemExit(f"the app that does nothing could not be deployed: {answer.text}")
    with server.client() as client:
        wait_until(lambda: client.get("/noop/status/any").status_code == 200, "the app that does nothing")


def wait_until_idle(server: Server) -> None:
    """Until no video waits or is made."""
    with server.client() as client:
        wait_until(lambda: not any(client.get("/health").json()["queue"].values()), "the last videos")


# The clients


def run_load(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the clients in a process of their own. Raises SystemExit if they did not come to their end."""
    with tempfile.TemporaryDirectory(prefix="mochi-bench-") as folder:
        figures = Path(folder) / "figures.json"
        options = {
            "--host": server.url,
            "--users": arguments.users,
            "--spawn-rate": SPAWN_A_SECOND,
            "--measure": arguments.seconds,
            "--videos-a-second": arguments.videos_a_second,
            "--figures": figures,
        }
        command = [sys.executable, "-m", "locust", "-f", str(USERS_FILE), "--headless", "--only-summary"]
        command += [f"{name}={value}" for name, value in options.items()]
        patience = arguments.seconds + arguments.users / SPAWN_A_SECOND + SPARE_S
        ran = subprocess.run(command, cwd=ROOT, timeout=patience, text=True, capture_output=True)
        if not figures.exists():
            raise SystemExit(f"Locust ended with {ran.returncode}:\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}")
        seen = json.loads(figures.read_text())
    return {"users": arguments.users, "videos_a_second": arguments.videos_a_second, **summarise(seen)}


def summarise(seen: dict[str, Any]) -> dict[str, Any]:
    """What the clients saw (`load_parts.users.Figures.write`), held against the bars."""
    seconds = seen["seconds"]
    times = seen["times"]
    kinds = {name: spread(times[name], seconds) for name in KINDS if times.get(name)}
    together = spread([time for of_kind in times.values() for time in of_kind], seconds)
    failures = seen["failures"]
    fast = together["rate"] >= RATE_BAR
    soon = together["p95_ms"] <= P95_BAR_MS
    return {
        "seconds": round(seconds, 1),
        **together,
        "kinds": kinds,
        **{name.replace(" ", "_"): count for name, count in seen["counts"].items()},
        "failed": sum(failures.values()),
        "failures": failures,
        "bars": {"failed": 0, "rate": RATE_BAR, "p95_ms": P95_BAR_MS},
        "holds": {"failed": not failures, "rate": fast, "p95_ms": soon},
    }


def spread(times: Sequence[float], seconds: float) -> dict[str, float]:
    """How many, how many a second, and the median, 95th and 99th percentile and maximum of these milliseconds."""
    ranked = sorted(times) or [math.inf]
    return {
        "requests": len(times),
        "rate": round(len(times) / seconds, 1),
        "p50_ms": round(statistics.median(ranked), 1),
        "p95_ms": round(percentile(ranked, 0.95), 1),
        "p99_ms": round(percentile(ranked, 0.99), 1),
        "max_ms": round(ranked[-1], 1),
    }


def percentile(ranked: Sequence[float], share: float) -> float:
    """The smallest of these, in rising order, that so large a share is not above."""
    return ranked[math.ceil(share * len(ranked)) - 1]


# The cost of a read


def compare_reads(server: Server, video_id: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Reads of a video's state a second, and those of the app that does nothing, in turn; nothing else happens."""
    urls = {"noop": f"{server.url}/noop/status/{video_id}", "status": f"{server.url}/v1/videos/{video_id}"}
    for url in urls.values():
        read_rate(url, arguments.callers, 1)
    rounds = [
        {name: read_rate(url, arguments.callers, arguments.round_seconds) for name, url in urls.items()}
        for _ in range(arguments.rounds)
    ]
    ratio = statistics.median(one["status"] / one["noop"] for one in rounds)
    return {
        "callers": arguments.callers,
        "round_s": arguments.round_seconds,
        **{name: round(statistics.median(one[name] for one in rounds), 1) for name in urls},
        "ratio": round(ratio, 3),
        "ratios": [round(one["status"] / one["noop"], 3) for one in rounds],
        "bar": RATIO_BAR,
        "holds": ratio >= RATIO_BAR,
    }


# Tables


def load_table(load: dict[str, Any]) -> Table:
    title = f"{load['users']} clients at once for {load['seconds']:.0f} s, {load['videos_a_second']:g} videos a second"
    table = Table("", "requests", "/s", "median", "p95", "max", "bar", "holds", title=title)
    for name, of in load["kinds"].items():
        table.add_row(name, *_figures(of))
    bars = load["bars"]
    holds = load["holds"]
    table.add_row("all", *_figures(load), f"p95 {bars['p95_ms'] / 1000:g} s", yes(holds, "p95_ms"))
    table.add_row("", "", "", "", "", "", f"{bars['rate']:g}/s", yes(holds, "rate"))
    table.add_row("failures", f"{load['failed']}", "", "", "", "", "0", yes(holds, "failed"))
    for failure, count in load["failures"].items():
        table.add_row(f"  {failure}", f"{count}")
    for name in ("videos_made", "streams", "told_to_wait"):
        table.add_row(name.replace("_", " "), f"{load.get(name, 0)}")
    return table


def _figures(of: dict[str, float]) -> list[str]:
    times = [f"{of[name]:.0f} ms" for name in ("p50_ms", "p95_ms", "max_ms")]
    return [f"{of['requests']}", f"{of['rate']:.1f}", *times]


def reads_table(reads: dict[str, Any]) -> Table:
    title = f"reads a second on {reads['callers']} connections"
    table = Table("nothing done", "state of a video", "ratio", "of the rounds", "bar", "holds", title=title)
    spread_of = f"{min(reads['ratios']):.2f} to {max(reads['ratios']):.2f}"
    rates = [f"{reads[name]:.0f}" for name in ("noop", "status")]
    table.add_row(*rates, f"{reads['ratio']:.2f}", spread_of, f"{reads['bar']:g}", yes(reads))
    return table


if __name__ == "__main__":
    main()
