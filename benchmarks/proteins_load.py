"""Hundreds of clients of /esm2 at once, with batches of all sizes: whether any request fails but by a limit.

    python benchmarks/proteins_load.py
    python benchmarks/proteins_load.py --clients 50 --seconds 20 --replicas 1

Starts a server as `mochi-serve serve` does, with the shape of ESM2's smallest model and weights drawn at random on the
CPU. Each client sends its next request when it has the answer to the last; one that a limit refuses (429) waits as
long as it is told. Prints tables and, last, one line of JSON."""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from benchmarks.dispatch import bench_server, wait_until, whole_number
from deployments.proteins.alphabet import AMINO_ACIDS
from tests.support.proteins.models import make_esm

SHAPE_8M: dict[str, Any] = {"layers": 6, "hidden": 320, "heads": 20}
BATCHES = (1, 1, 1, 2, 4, 8, 16, 64)  # sequences of a request, drawn alike
MEDIAN_LENGTH = 60.0  # residues; log-normal, so that some are five times as long
LONGEST = 400
WRONG_EVERY = 20  # sequences, of which one has a letter that stands for nothing
TENANTS = 10
LIMITED = 429
ANSWER_S = 700.0


@dataclass
class Tally:
    """What all clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of answered requests
    sequences: int = 0  # answered
    refused: int = 0  # sequences with an error of their own, as they should have
    mistaken: int = 0  # answers with another number of results, or errors, than there should be
    tokens: int = 0


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="mochi-esm-") as folder:
        model = make_esm(Path(folder) / "esm", **SHAPE_8M)
        environ = {
            "MOCHI_SERVE__PROTEINS__SOURCE": str(model),
            "MOCHI_SERVE__PROTEINS__REPLICAS": str(arguments.replicas),
            "MOCHI_SERVE__PROTEINS__TORCH_THREADS": "1",
        }
        with bench_server(environ) as server:
            with server.client() as client:
                wait_until(lambda: _devices(client) == arguments.replicas, "the protein model to be loaded")
            tally, took_s = asyncio.run(_run(server.url, arguments))
            with server.client() as client:
                health = client.get("/esm2/health").json()
    failed = sum(count for status, count in tally.statuses.items() if status not in ("200", str(LIMITED)))
    load = {
        "clients": arguments.clients,
        "seconds": round(took_s, 1),
        "statuses": dict(tally.statuses),
        "failed": failed,
        "mistaken": tally.mistaken,
        "sequences_a_second": round(tally.sequences / took_s, 2),
        "tokens_a_second": round(tally.tokens / took_s),
        "p50_s": round(statistics.median(tally.seconds), 2) if tally.seconds else None,
        "p95_s": round(statistics.quantiles(tally.seconds, n=20)[-1], 2) if len(tally.seconds) > 1 else None,
        "longest_s": round(max(tally.seconds, default=0.0), 2),
        "groups_by_device": [device["answered"] for device in health["devices"]],
        "holds": failed == 0 and tally.mistaken == 0,
    }
    Console().print(_table(load))
    publish(
        {"benchmark": "proteins_load", "machine": describe_machine(torch.device("cpu")), "load": load}, arguments.out
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=whole_number, default=500)
    parser.add_argument("--seconds", type=whole_number, default=120, help="in which requests are begun")
    parser.add_argument("--replicas", type=whole_number, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


def _devices(client: Any) -> int:
    health = client.get("/esm2/health")
    return len(health.json()["devices"]) if health.status_code == 200 else 0


async def _run(url: str, arguments: argparse.Namespace) -> tuple[Tally, float]:
    tally = Tally()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    began = time.monotonic()
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        deadline = began + arguments.seconds
        clients = [_client(session, number, deadline, tally) for number in range(arguments.clients)]
        await asyncio.gather(*clients)
    return tally, time.monotonic() - began


async def _client(session: aiohttp.ClientSession, number: int, deadline: float, tally: Tally) -> None:
    draw = random.Random(number)
    headers = {"OpenAI-Organization": f"tenant-{number % TENANTS}"}
    await asyncio.sleep(draw.uniform(0, 5))
    while time.monotonic() < deadline:
        batch, wrong = _batch(draw)
        sent_at = time.monotonic()
        try:
            async with session.post("/esm2/predict/batch", json={"sequences": batch}, headers=headers) as answer:
                tally.statuses[str(answer.status)] += 1
                if answer.status == LIMITED:
                    await asyncio.sleep(int(answer.headers["Retry-After"]) * draw.uniform(1, 2))
                    continue
                told = json.loads(await answer.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            tally.statuses[type(error).__name__] += 1
            continue
        if answer.status == 200:
            errors = [one["index"] for one in told["results"] if "error" in one]
            tally.seconds.append(time.monotonic() - sent_at)
            tally.mistaken += len(told["results"]) != len(batch) or errors != wrong
            tally.sequences += len(batch) - len(errors)
            tally.refused += len(errors)
            tally.tokens += sum(len(one) + 2 for index, one in enumerate(batch) if index not in errors)


def _batch(draw: random.Random) -> tuple[list[str], list[int]]:
    """Sequences, and the indexes of those that are to be refused."""
    batch, wrong = [], []
    for index in range(draw.choice(BATCHES)):
        length = max(1, min(LONGEST, round(draw.lognormvariate(0, 0.6) * MEDIAN_LENGTH)))
        letters = draw.choices(AMINO_ACIDS, k=length)
        if draw.randrange(WRONG_EVERY) == 0:
            letters[draw.randrange(length)] = "1"
            wrong.append(index)
        batch.append("".join(letters))
    return batch, wrong


def _table(load: dict[str, Any]) -> Table:
    table = Table("clients", "answers", "failed", "mistaken", "sequences/s", "p50, s", "p95, s", "groups a device")
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(load["statuses"].items()))
    table.add_row(
        str(load["clients"]),
        statuses,
        str(load["failed"]),
        str(load["mistaken"]),
        str(load["sequences_a_second"]),
        str(load["p50_s"]),
        str(load["p95_s"]),
        ", ".join(map(str, load["groups_by_device"])),
    )
    return table


if __name__ == "__main__":
    main()
