"""How well the samplers are kept at work: eight replicas on eight logical GPUs, one slot each, steps of a fixed time.

    python benchmarks/dispatch.py
    python benchmarks/dispatch.py --jobs 32 --seed 5 --out benchmarks/results/dispatch.json

Starts a server of its own on free ports. What is measured comes from the history of moves in its database; times are
Unix seconds of one machine. Prints a table and, last, one line of JSON.
"""

import argparse
import heapq
import random
import re
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from tests.support.servers.server import FINAL, Server, running_server

REPLICAS = 8
STEP_S = 0.25
STEPS = (10, 60)
AT_ONCE_STEPS = 20
MAKESPAN_BAR = 1.05
BUSY_BAR = 0.97
POLL_S = 0.01
PATIENCE_S = 600.0

CLIP = {"prompt": "a red circle moving right", "size": "32x32", "num_frames": 7}
ENVIRONMENT = {
    # What Ray's autoscaler says of a node it starts; here it makes up GPUs that are only counted.
    "RAY_OVERRIDE_RESOURCES": f'{{"GPU": {REPLICAS}}}',
    # Lines of several replicas that differ in nothing but ids and numbers would be shown once.
    "RAY_DEDUP_LOGS": "0",
    "MOCHI_SERVE__SAMPLER__NUM_GPUS": "1",
    "MOCHI_SERVE__SAMPLER__MIN_REPLICAS": f"{REPLICAS}",
    "MOCHI_SERVE__SAMPLER__MAX_REPLICAS": f"{REPLICAS}",
    "MOCHI_SERVE__SAMPLER__SLOTS": "1",
    "MOCHI_SERVE__SAMPLER__TORCH_THREADS": "1",
    "MOCHI_SERVE__DECODER__TORCH_THREADS": "1",
    "MOCHI_SERVE__SAMPLING__MIN_STEP_S": f"{STEP_S}",
}


def main() -> None:
    arguments = _arguments()
    lengths = draw_lengths(arguments.jobs, arguments.seed)
    with bench_server(ENVIRONMENT) as server:
        wait_for_samplers(server, REPLICAS)
        run_all(server, [2] * REPLICAS)
        sections = {
            "at_once": at_once(server),
            "mixed": mixed(server, lengths),
            "round_robin": round_robin(server, lengths),
        }
    Console().print(as_table(sections))
    setting = {"replicas": REPLICAS, "slots": 1, "step_s": STEP_S, "jobs": arguments.jobs, "seed": arguments.seed}
    result = {"benchmark": "dispatch", "machine": describe_machine(torch.device("cpu")), **setting, **sections}
    publish(result, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=whole_number, default=64, help="jobs of mixed length")
    parser.add_argument("--seed", type=int, default=0, help="of the jobs' lengths")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


def whole_number(text: str) -> int:
    """An argument that counts something. Raises argparse.ArgumentTypeError below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def draw_lengths(jobs: int, seed: int) -> list[int]:
    """Denoising steps of each job, evenly from STEPS."""
    chance = random.Random(seed)
    return [chance.randint(*STEPS) for _ in range(jobs)]


# The server and its history


@contextmanager
def bench_server(environ: dict[str, str]) -> Iterator[Server]:
    """A server in a temporary folder; environ overrides its profile."""
    with tempfile.TemporaryDirectory(prefix="mochi-bench-") as folder, running_server(Path(folder), environ) as server:
        yield server


def wait_for_samplers(server: Server, wanted: int) -> None:
    with server.client() as client:
        wait_until(lambda: len(client.get("/health").json()["devices"]["sampling"]) == wanted, "samplers to be ready")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Raises SystemExit if it does not hold within PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE_S:g} s in vain for {what}")
        time.sleep(POLL_S)


class Move(NamedTuple):
    """A line of a job's history."""

    number: int  # of the line, over all jobs
    job_id: str
    at: float  # Unix seconds
    state: str  # that the job moved to
    stage: str  # that the job moved to
    attempt: int


class History:
    """Reads the moves from the server's database, where they stand once they are durable."""

    def __init__(self, server: Server) -> None:
        self._url = f"file:{server.data / 'jobs.db'}?mode=ro"

    def moves(self, after: int = 0) -> list[Move]:
        """All moves with a number above `after`, in order."""
        rows = self.query("SELECT id, job_id, at, state, stage, attempt FROM job_moves WHERE id > ? ORDER BY id", after)
        return [Move(*row) for row in rows]

    def sampling(self, job_ids: Collection[str]) -> list["Span"]:
        return spans([move for move in self.moves() if move.job_id in job_ids], "sampling")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._url, uri=True, timeout=10)) as connection:
            return connection.execute(sql, values).fetchall()


@dataclass(frozen=True, slots=True)
class Span:
    """A time for which a job held a slot of a stage, Unix seconds."""

    job_id: str
    begin: float
    end: float

    def within(self, begin: float, end: float) -> float:
        """Seconds of it that lie between these moments."""
        return max(0.0, min(self.end, end) - max(self.begin, begin))


def spans(moves: Iterable[Move], state: str) -> list[Span]:
    """The times spent in a state, one for each stay that has ended, in the order of their beginnings."""
    entered: dict[str, float] = {}
    found = []
    for move in moves:
        if move.job_id in entered:
            found.append(Span(move.job_id, entered.pop(move.job_id), move.at))
        if move.state == state:
            entered[move.job_id] = move.at
    return sorted(found, key=lambda span: span.begin)


def submit(client: Any, steps: int, **fields: Any) -> str:
    """The id of the accepted job."""
    response = client.post("/v1/videos", json=CLIP | {"num_inference_steps": steps, "seed": 1} | fields)
    if response.status_code != 200:
        raise SystemExit(f"a job was not accepted: {response.text}")
    return str(response.json()["id"])


def wait_for_end(server: Server, job_ids: Collection[str]) -> None:
    """Until all are completed. Raises SystemExit if one ends otherwise."""
    history = History(server)
    waiting = set(job_ids)
    seen = 0

    def all_ended() -> bool:
        nonlocal seen
        for move in history.moves(seen):
            seen = move.number
            if move.job_id in waiting and move.state in FINAL:
                if move.state != "completed":
                    raise SystemExit(f"{move.job_id} ended as {move.state}\n{server.log_tail()}")
                waiting.discard(move.job_id)
        return not waiting

    wait_until(all_ended, "the jobs to end")


def run_all(server: Server, lengths: Sequence[int]) -> tuple[float, list[str]]:
    """Submit jobs of these lengths one after another and wait for all. Time before the first POST, and their ids."""
    begun = time.time()
    with server.client() as client:
        job_ids = [submit(client, steps) for steps in lengths]
    wait_for_end(server, job_ids)
    return begun, job_ids


# (a) as many requests as replicas


def at_once(server: Server) -> dict[str, Any]:
    """Whether as many jobs as replicas run all at the same time, each on its own."""
    begun = time.time()
    with server.client() as client, ThreadPoolExecutor(REPLICAS) as callers:
        job_ids = list(callers.map(lambda _: submit(client, AT_ONCE_STEPS), range(REPLICAS)))
    wait_for_end(server, job_ids)
    sampling = History(server).sampling(job_ids)
    places = replicas_of(server.log.read_text(errors="replace"), job_ids)
    together = at_same_time(sampling)
    return {
        "requests": REPLICAS,
        "at_the_same_time": together,
        "replicas": len(places),
        "all_running_after_s": round(sampling[-1].begin - begun, 3),
        "holds": together == len(places) == REPLICAS,
    }


def at_same_time(found: Iterable[Span]) -> int:
    """The most of these that overlap at one moment."""
    changes = sorted([(span.begin, 1) for span in found] + [(span.end, -1) for span in found])
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def replicas_of(log: str, job_ids: Collection[str]) -> set[int]:
    """Process ids of the samplers that say in the server's log that they begin one of these jobs."""
    begins = re.findall(r" sampler \w+ (\d+) -- \[(video_[0-9a-f]{32})\] sampling begins", log)
    return {int(pid) for pid, job_id in begins if job_id in job_ids}


# (b) and (c) more jobs than replicas


def mixed(server: Server, lengths: Sequence[int]) -> dict[str, Any]:
    """All jobs at once: the makespan against the ideal, and how busy the samplers were while jobs waited."""
    begun, job_ids = run_all(server, lengths)
    sampling = History(server).sampling(job_ids)
    steps = dict(zip(job_ids, lengths, strict=True))
    makespan = max(span.end for span in sampling) - begun
    ideal = list_schedule(lengths, REPLICAS) * STEP_S
    return {
        **makespan_section(makespan, ideal, lengths),
        "bar": MAKESPAN_BAR,
        "holds": makespan <= MAKESPAN_BAR * ideal,
        "busy": busy_section(sampling, steps, begun),
    }


def round_robin(server: Server, lengths: Sequence[int]) -> dict[str, Any]:
    """The same jobs dealt to lanes in turn, each lane with one job at a time: the next when its last was sampled."""
    lanes = [deque(lengths[lane::REPLICAS]) for lane in range(REPLICAS)]
    history = History(server)
    seen = max(move.number for move in history.moves())
    begun = time.time()
    with server.client() as client:
        lane_of = {submit(client, lane.popleft()): lane for lane in lanes if lane}
        sampled: set[str] = set()

        def deal() -> bool:
            nonlocal seen
            for move in history.moves(seen):
                seen = move.number
                if move.stage == "decoding" and move.state == "queued":
                    sampled.add(move.job_id)
                    if lane := lane_of[move.job_id]:
                        lane_of[submit(client, lane.popleft())] = lane
            return len(sampled) == len(lengths)

        wait_until(deal, "the lanes to end")
    wait_for_end(server, lane_of)
    makespan = max(span.end for span in history.sampling(lane_of)) - begun
    ideal = max(sum(lengths[lane::REPLICAS]) for lane in range(REPLICAS)) * STEP_S
    return makespan_section(makespan, list_schedule(lengths, REPLICAS) * STEP_S, lengths) | {
        "without_overhead_s": round(ideal, 3)
    }


def makespan_section(makespan: float, ideal: float, lengths: Sequence[int]) -> dict[str, Any]:
    """A makespan against the list schedule and the least that any schedule needs; all in seconds."""
    bound = least_steps(lengths, REPLICAS) * STEP_S
    return {
        "makespan_s": round(makespan, 3),
        "ideal_s": round(ideal, 3),
        "of_ideal": round(makespan / ideal, 4),
        "bound_s": round(bound, 3),
        "of_bound": round(makespan / bound, 4),
    }


def list_schedule(lengths: Iterable[int], machines: int) -> int:
    """Steps until all are done when each in order goes to the machine that is free first, without overhead."""
    free = [0] * machines
    for steps in lengths:
        heapq.heapreplace(free, free[0] + steps)
    return max(free)


def least_steps(lengths: Sequence[int], machines: int) -> float:
    """What no schedule can go below: an even share of the work, and the longest job."""
    return max(sum(lengths) / machines, max(lengths))


def busy_section(sampling: Sequence[Span], steps: dict[str, int], begun: float) -> dict[str, Any]:
    """How busy the samplers were from the first POST until the last waiting job got its slot.

    held: a job had the slot, by the moves. denoising: steps at their fixed time, so that the loading of embeddings,
    the storing of latents, the reports and every pause between two steps count as idle. A job's steps lie evenly in
    the time it was sampled.
    """
    end = max(span.begin for span in sampling)
    capacity = REPLICAS * (end - begun)
    held = sum(span.within(begun, end) for span in sampling)
    total: dict[str, float] = defaultdict(float)
    for span in sampling:
        total[span.job_id] += span.end - span.begin
    rate = {job_id: steps[job_id] * STEP_S / seconds for job_id, seconds in total.items()}
    denoising = sum(span.within(begun, end) * rate[span.job_id] for span in sampling)
    return {
        "while_s": round(end - begun, 3),
        "held": round(held / capacity, 4),
        "denoising": round(denoising / capacity, 4),
        "bar": BUSY_BAR,
        "holds": held >= BUSY_BAR * capacity,
        "holds_denoising": denoising >= BUSY_BAR * capacity,
    }


def as_table(sections: dict[str, Any]) -> Table:
    once, ours, dealt = (sections[name] for name in ("at_once", "mixed", "round_robin"))
    busy = ours["busy"]
    table = Table("", "measured", "ideal", "ratio", "bar", "holds", title=f"{REPLICAS} samplers, steps of {STEP_S} s")
    together = f"{once['at_the_same_time']} on {once['replicas']} replicas"
    table.add_row(f"{once['requests']} requests at once", together, f"{REPLICAS}", "", f"{REPLICAS}", yes(once))
    table.add_row("  all running after", f"{once['all_running_after_s']:.2f} s", "", "", "", "")
    bar = f"{ours['bar']:.2f}"
    table.add_row("makespan, the queue", *_seconds(ours, "ideal"), f"{ours['of_ideal']:.3f}", bar, yes(ours))
    table.add_row("  of the least possible", *_seconds(ours, "bound"), f"{ours['of_bound']:.3f}", "", "")
    table.add_row("makespan, round robin", *_seconds(dealt, "ideal"), f"{dealt['of_ideal']:.3f}", "", "")
    free = dealt["without_overhead_s"]
    table.add_row("  without overhead", f"{free:.2f} s", "", f"{free / dealt['ideal_s']:.3f}", "", "")
    for name in ("held", "denoising"):
        holds = yes(busy, "holds" if name == "held" else "holds_denoising")
        table.add_row(f"busy, {name}", f"{busy[name]:.1%}", "", "", f"{busy['bar']:.0%}", holds)
    return table


def _seconds(section: dict[str, Any], against: str) -> tuple[str, str]:
    return f"{section['makespan_s']:.2f} s", f"{section[f'{against}_s']:.2f} s"


def yes(section: dict[str, Any], key: str = "holds") -> str:
    return "yes" if section[key] else "no"


if __name__ == "__main__":
    main()
