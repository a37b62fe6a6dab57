"""Protein embeddings: a replica for each device, beside one replica that has all devices and pads what it is sent.

    python benchmarks/proteins.py
    python benchmarks/proteins.py --rounds 5 --out benchmarks/results/proteins.json
    python benchmarks/proteins.py --size 650M

ESM2 with random weights on the CPU, one thread a device, in a Ray and a Serve of its own. All ways to embed take turns,
in an order that turns from round to round. With the size 650M it shows instead what one replica takes, in float32 and
in bfloat16. Prints a table of medians and, last, one line of JSON.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from benchmarks.dispatch import whole_number, yes
from benchmarks.load import percentile
from benchmarks.protein_parts.contenders import Contender, OneByOne, Ours, Source, serve_running
from benchmarks.protein_parts.models import SIZES, write_model
from benchmarks.step_batching import spread
from deployments.dtypes import DtypeName
from deployments.proteins.alphabet import AMINO_ACIDS
from serve_app.proteins.requests import MAX_BATCH

LARGE = ("650M",)
"""Sizes of which one replica alone is shown."""
BATCH = 32
BATCH_CLIENTS = 4
COMPARED = 16
SINGLE_CLIENTS = 16
LENGTHS = (50, 1000)  # residues; about those of UniProt: log-normal, the median near 300
TOLERANCE = 1e-4  # of the largest value of the source design's answers
RATE_BAR = 1.7
CPU_BAR = 0.5
DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")

Request = list[str]


@dataclass(frozen=True, slots=True)
class Load:
    """Requests, and how many clients send them, each the next one when it has an answer."""

    requests: list[Request]
    clients: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What one load took in one round."""

    sequences: int
    seconds: float
    cpu_s: float  # of the contender's processes
    callers_cpu_s: float  # of this process
    waits_s: list[float]  # of each request

    @property
    def rate(self) -> float:
        return self.sequences / self.seconds

    @property
    def cpu_s_a_sequence(self) -> float:
        return self.cpu_s / self.sequences


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    shape = SIZES[arguments.size]
    with tempfile.TemporaryDirectory(prefix="mochi-bench-") as folder:
        model = write_model(Path(folder), shape)
        with serve_running():
            if arguments.size in LARGE:
                section = one_replica(model, arguments.sequences, arguments.rounds or 1, arguments.threads)
                tables = [replica_table(section, arguments.size)]
            else:
                section = designs(model, draw_loads(arguments.batches, arguments.singles), arguments.rounds or 3)
                tables = [designs_table(section, name, arguments.size) for name in section["loads"]]
    for table in tables:
        Console().print(table)
    machine = describe_machine(torch.device("cpu"))
    publish({"benchmark": "proteins", "machine": machine, "size": arguments.size, **section}, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="8M", help="of the model; 650M: one replica alone")
    parser.add_argument("--batches", type=whole_number, default=4, help=f"requests of {BATCH} sequences a round")
    parser.add_argument("--singles", type=whole_number, default=32, help="requests of one sequence a round")
    parser.add_argument("--rounds", type=whole_number, help="default: 3, and 1 of 650M")
    parser.add_argument("--sequences", type=whole_number, default=8, help="of 650M: of the one request of a round")
    parser.add_argument("--threads", type=whole_number, default=1, help="of 650M: of the CPU")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    if arguments.sequences > MAX_BATCH:
        parser.error(f"--sequences must be at most {MAX_BATCH}, what a request may hold")
    return arguments


# What is sent


def draw_loads(batches: int, singles: int, batch: int = BATCH) -> dict[str, Load]:
    """The same for the same arguments."""
    chance = random.Random(0)
    return {
        "batches": Load([draw_sequences(chance, batch) for _ in range(batches)], BATCH_CLIENTS),
        "singles": Load([draw_sequences(chance, 1) for _ in range(singles)], SINGLE_CLIENTS),
    }


def draw_sequences(chance: random.Random, count: int) -> Request:
    shortest, longest = LENGTHS
    lengths = (round(chance.lognormvariate(5.69, 0.7)) for _ in range(count))
    return ["".join(chance.choices(AMINO_ACIDS, k=max(shortest, min(longest, length)))) for length in lengths]


# Measuring


def designs(model: Path, loads: Mapping[str, Load], rounds: int, curve: Sequence[int] = (1, 2, 4)) -> dict[str, Any]:
    """The source design with as many devices as the last of the curve has replicas, ours along it, and one by one.

    Args:
        model: a folder.
        curve: how many replicas of ours.
    """
    source = Source(model, curve[-1])
    ours = {count: Ours(f"ours{count}", model, count) for count in curve}
    contenders: dict[str, Contender] = {"source": source}
    contenders |= {f"ours, {count}": one for count, one in ours.items()}
    contenders["one by one"] = OneByOne(model)

    async def measure() -> tuple[dict[str, dict[str, float]], list[dict[str, dict[str, Measured]]]]:
        async with AsyncExitStack() as stack:
            for one in ours.values():
                await stack.enter_async_context(one.running())
            difference = await compare(contenders, next(iter(loads.values())).requests[0][:COMPARED])
            return difference, await take_turns(contenders, loads, rounds)

    differences, measured = asyncio.run(measure())
    judged = f"ours, {curve[-1]}"
    return {
        "rounds": rounds,
        "devices": curve[-1],
        "differences": differences,
        "loads": {
            name: _of_load(load) | summarise([one[name] for one in measured], judged) for name, load in loads.items()
        },
    }


def _of_load(load: Load) -> dict[str, Any]:
    lengths = [len(sequence) for request in load.requests for sequence in request]
    return {
        "requests": len(load.requests),
        "sequences": len(lengths),
        "clients": load.clients,
        "residues_mean": round(statistics.mean(lengths)),
    }


async def compare(contenders: Mapping[str, Contender], request: Request) -> dict[str, dict[str, float]]:
    """How far the answers of all are from those of the first, at most.

    Raises:
        SystemExit: further than rounding: the times would compare nothing.
    """
    answers = {name: np.stack(await one.embed(request)) for name, one in contenders.items()}
    first, *others = answers
    largest = float(np.abs(answers[first]).max())
    differences = {}
    for name in others:
        difference = float(np.abs(answers[name] - answers[first]).max())
        if not difference <= TOLERANCE * largest:
            raise SystemExit(f"{name}: its answers are up to {difference:.1e} off those of {first}, of {largest:.2g}")
        differences[name] = {"largest": difference, "of_largest_value": difference / largest}
    return differences


async def take_turns(
    contenders: Mapping[str, Contender], loads: Mapping[str, Load], rounds: int
) -> list[dict[str, dict[str, Measured]]]:
    """What each took for each load, by the load, round by round; who begins turns."""
    names = list(contenders)
    found = []
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        found.append(
            {
                load_name: {name: await drive(contenders[name], load) for name in order}
                for load_name, load in loads.items()
            }
        )
    return found


async def drive(contender: Contender, load: Load) -> Measured:
    """Have the clients send all requests."""
    waiting, waits_s = deque(load.requests), []

    async def client() -> None:
        while waiting:
            began = time.perf_counter()
            await contender.embed(waiting.popleft())
            waits_s.append(time.perf_counter() - began)

    cpu_s, callers_s, began = contender.cpu_s(), time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(load.clients):
            clients.create_task(client())
    seconds = time.perf_counter() - began
    sequences = sum(map(len, load.requests))
    return Measured(sequences, seconds, contender.cpu_s() - cpu_s, time.process_time() - callers_s, waits_s)


def summarise(rounds: Sequence[Mapping[str, Measured]], judged: str) -> dict[str, Any]:
    """Medians of the rounds; ratios are to the first contender in the same round.

    Args:
        rounds: by the contender.
        judged: the contender that the bars are for.
    """
    first = next(iter(rounds[0]))
    points = {name: _point([one[name] for one in rounds], [one[first] for one in rounds]) for name in rounds[0]}
    ours = points[judged]
    return {
        "contenders": points,
        "bars": {"rate_of_source": RATE_BAR, "cpu_of_source": CPU_BAR},
        "holds": {
            "rate_of_source": ours["rate_of_source"] >= RATE_BAR,
            "cpu_of_source": ours["cpu_of_source"] <= CPU_BAR,
        },
    }


def _point(rounds: Sequence[Measured], source: Sequence[Measured]) -> dict[str, Any]:
    pairs = list(zip(rounds, source, strict=True))
    waits_s = sorted(wait for one in rounds for wait in one.waits_s)
    rates = [one.rate for one in rounds]
    return {
        "sequences_per_s": round(statistics.median(rates), 2),
        "rates": [round(rate, 2) for rate in rates],
        "spread": round(spread(rates), 3),
        "rate_of_source": round(statistics.median(one.rate / other.rate for one, other in pairs), 3),
        "cpu_ms": round(statistics.median(one.cpu_s_a_sequence for one in rounds) * 1e3, 1),
        "cpu_of_source": round(
            statistics.median(one.cpu_s_a_sequence / other.cpu_s_a_sequence for one, other in pairs), 3
        ),
        "callers_cpu_ms": round(statistics.median(one.callers_cpu_s / one.sequences for one in rounds) * 1e3, 1),
        "p50_s": round(statistics.median(waits_s), 3),
        "p95_s": round(percentile(waits_s, 0.95), 3),
    }


def one_replica(model: Path, sequences: int, rounds: int, threads: int) -> dict[str, Any]:
    """What a replica of ours takes in each dtype: both are there, and are asked in turn for one request a round."""
    contenders: dict[str, Ours] = {dtype: Ours(dtype, model, 1, dtype, threads) for dtype in DTYPES}
    at_rest = {name: one.replicas.memory_mb() for name, one in contenders.items()}
    load = Load([draw_sequences(random.Random(0), sequences)], clients=1)

    async def measure() -> tuple[list[dict[str, Measured]], float]:
        async with AsyncExitStack() as stack:
            for one in contenders.values():
                await stack.enter_async_context(one.running())
            exact, rounded = [np.stack(await one.embed(load.requests[0])) for one in contenders.values()]
            found = await take_turns(contenders, {"request": load}, rounds)
            error = float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact))
            return [one["request"] for one in found], error

    measured, error = asyncio.run(measure())
    return {
        "rounds": rounds,
        "threads": threads,
        "load": _of_load(load),
        "error_of_bfloat16": error,
        "dtypes": {
            name: {
                "start_s": round(one.start_s, 1),
                "at_rest_mb": at_rest[name],
                "at_work_mb": one.replicas.memory_mb(),
                **_point([of[name] for of in measured], [of[DTYPES[0]] for of in measured]),
            }
            for name, one in contenders.items()
        },
    }


# Tables


def designs_table(section: dict[str, Any], name: str, size: str) -> Table:
    load = section["loads"][name]
    title = (
        f"{name}: {load['sequences']} sequences of {load['residues_mean']} residues by {load['clients']} clients; "
        f"{size}, {section['devices']} devices"
    )
    table = Table("", "/s", "of source", "spread", "CPU each", "of source", "wait", "p95", title=title)
    table.columns[0].no_wrap = True
    for contender, point in load["contenders"].items():
        rate = (f"{point['sequences_per_s']:.1f}", f"{point['rate_of_source']:.2f}", f"{point['spread']:.0%}")
        cpu = (f"{point['cpu_ms']:.0f} ms", f"{point['cpu_of_source']:.2f}")
        table.add_row(contender, *rate, *cpu, f"{point['p50_s']:.2f} s", f"{point['p95_s']:.2f} s")
    bars, holds = load["bars"], load["holds"]
    table.add_row("bar", "", f"{bars['rate_of_source']:g}", "", "", f"{bars['cpu_of_source']:g}")
    table.add_row("holds", "", yes(holds, "rate_of_source"), "", "", yes(holds, "cpu_of_source"))
    return table


def replica_table(section: dict[str, Any], size: str) -> Table:
    load = section["load"]
    title = f"a replica of {size}, {section['threads']} thread(s), {load['sequences']} sequences in a request, GB"
    title += f"; bfloat16 is {section['error_of_bfloat16']:.1e} off"
    table = Table("", "start", "RSS", "no file's", "PSS", "most RSS", "/s", "of float32", "CPU each", title=title)
    table.columns[0].no_wrap = True
    for dtype, point in section["dtypes"].items():
        memory = [f"{point['at_work_mb'][name] / 1e3:.2f}" for name in ("rss", "anonymous", "pss", "peak_rss")]
        rate = (f"{point['sequences_per_s']:.2f}", f"{point['rate_of_source']:.2f}", f"{point['cpu_ms'] / 1e3:.2f} s")
        table.add_row(dtype, f"{point['start_s']:.0f} s", *memory, *rate)
    return table


if __name__ == "__main__":
    main()
