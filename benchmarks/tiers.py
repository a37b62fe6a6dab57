"""How long interactive jobs wait behind long ones: 100 jobs of all tiers on one sampler, all of its slots taken.

    python benchmarks/tiers.py
    python benchmarks/tiers.py --jobs 200 --seed 5 --out benchmarks/results/tiers.json

Starts servers of its own: one that may park a job of a lower tier when an interactive one finds no slot, then one with
preemption off and fewer jobs. Times are Unix seconds of one machine. Prints a table and, last, one line of JSON.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from benchmarks.dispatch import (
    History,
    Span,
    bench_server,
    submit,
    wait_for_end,
    wait_for_samplers,
    whole_number,
    yes,
)
from tests.support.servers.server import FINAL, Server

SLOTS = 4
STEP_S = 0.3
OVER_A_STEP_S = 0.2
INTERACTIVE_SHARE = 0.4
INTERACTIVE_STEPS = 8
LONG_STEPS = (15, 25)
FIRST_ARRIVAL_S = 3.0
# Interactive jobs come only while long ones wait: in this share of the time that the long ones need by themselves.
ARRIVAL_SHARE = 0.9
LOOK_S = 0.05

ENVIRONMENT = {
    "MOCHI_SERVE__SAMPLER__SLOTS": f"{SLOTS}",
    "MOCHI_SERVE__SAMPLER__TORCH_THREADS": "1",
    "MOCHI_SERVE__DECODER__TORCH_THREADS": "1",
    "MOCHI_SERVE__SAMPLING__MIN_STEP_S": f"{STEP_S}",
}


def main() -> None:
    arguments = _arguments()
    sections = {
        "preemption": measure(True, arguments.jobs, arguments.seed),
        "no_preemption": measure(False, arguments.fewer, arguments.seed),
    }
    Console().print(as_table(sections))
    setting = {"slots": SLOTS, "step_s": STEP_S, "seed": arguments.seed}
    result = {"benchmark": "tiers", "machine": describe_machine(torch.device("cpu")), **setting, **sections}
    publish(result, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=whole_number, default=100)
    parser.add_argument("--fewer", type=whole_number, default=30, help="jobs of the run with preemption off")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths and of the moments of arrival")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    if min(arguments.jobs, arguments.fewer) < 4 * SLOTS:
        parser.error(f"--jobs and --fewer must be at least {4 * SLOTS}: the slots are to be full")
    return arguments


@dataclass(frozen=True, slots=True)
class Plan:
    """Which jobs come, and when."""

    long: tuple[tuple[str, int], ...]  # tier and steps of the jobs submitted at once
    arrivals: tuple[float, ...]  # of the interactive jobs, seconds after those


def plan(jobs: int, seed: int) -> Plan:
    """Long jobs of both lower tiers in turn, and interactive ones at random moments while long ones wait."""
    chance = random.Random(seed)
    interactive = round(jobs * INTERACTIVE_SHARE)
    long = tuple((("standard", "batch")[n % 2], chance.randint(*LONG_STEPS)) for n in range(jobs - interactive))
    last = ARRIVAL_SHARE * sum(steps for _, steps in long) * STEP_S / SLOTS
    return Plan(long, tuple(sorted(chance.uniform(FIRST_ARRIVAL_S, last) for _ in range(interactive))))


@dataclass(frozen=True, slots=True)
class Visit:
    """An interactive job as its client sees it."""

    job_id: str
    accepted: float  # Unix seconds
    stepped: float  # Unix seconds, when the server said that a step was done


def measure(preemption: bool, jobs: int, seed: int) -> dict[str, Any]:
    """Run the plan on a server of its own and look at what it did."""
    to_do = plan(jobs, seed)
    environ = ENVIRONMENT | {"MOCHI_SERVE__SCHEDULING__PREEMPTION": str(preemption).lower()}
    with bench_server(environ) as server:
        wait_for_samplers(server, 1)
        warm_up(server)
        with server.client() as client:
            long = {submit(client, steps, priority=tier): steps for tier, steps in to_do.long}
        visits = let_arrive(server, to_do.arrivals)
        asked = long | {visit.job_id: INTERACTIVE_STEPS for visit in visits}
        wait_for_end(server, asked)
        return summarise(History(server), visits, asked, long)


def warm_up(server: Server) -> None:
    """One job of each tier, so that no path is new."""
    with server.client() as client:
        wait_for_end(server, [submit(client, 2, priority=tier) for tier in ("interactive", "standard", "batch")])


def let_arrive(server: Server, arrivals: Sequence[float]) -> list[Visit]:
    """Submit an interactive job at each of these moments, seconds from now, and watch it until its first step."""
    begun = time.time()
    with ThreadPoolExecutor(len(arrivals)) as visitors:
        return list(visitors.map(lambda after_s: _visit(server, begun + after_s), arrivals))


def _visit(server: Server, moment: float) -> Visit:
    time.sleep(max(0.0, moment - time.time()))
    with server.client() as client:
        job_id = submit(client, INTERACTIVE_STEPS, priority="interactive")
        accepted = time.time()
        video = client.get(f"/v1/videos/{job_id}").json()
        while video["step"] < 1 and video["state"] not in FINAL:
            time.sleep(LOOK_S)
            video = client.get(f"/v1/videos/{job_id}").json()
    return Visit(job_id, accepted, time.time())


def summarise(history: History, visits: Sequence[Visit], asked: dict[str, int], long: dict[str, int]) -> dict[str, Any]:
    """Waits of the interactive jobs, and what preemption did to the others. asked: steps of every job."""
    sampling = history.sampling(asked)
    began: dict[str, float] = {}
    for span in sampling:
        began.setdefault(span.job_id, span.begin)
    waits = [began[visit.job_id] - visit.accepted for visit in visits]
    rows = history.query("SELECT id, steps_run, parks, attempt FROM jobs")
    run = {job_id: steps for job_id, steps, _, _ in rows if job_id in asked}
    parks = [count for job_id, _, count, _ in rows if job_id in long]
    bar = STEP_S + OVER_A_STEP_S
    return {
        "jobs": len(asked),
        "interactive": len(visits),
        "found_slots_full": sum(taken(sampling, visit.accepted) >= SLOTS for visit in visits),
        "wait": spread(waits),
        "first_step": spread([visit.stepped - visit.accepted for visit in visits]),
        "bar_s": bar,
        "holds": statistics.median(waits) <= bar,
        "parks": sum(parks),
        "most_parks_of_a_job": max(parks),
        "attempts_lost": sum(attempt - 1 for job_id, _, _, attempt in rows if job_id in asked),
        "steps": sum(asked.values()),
        "steps_run": sum(run.values()),
        "steps_run_twice": sum(max(0, run[job_id] - steps) for job_id, steps in asked.items()),
    }


def taken(sampling: Sequence[Span], at: float) -> int:
    """How many slots were taken at a moment."""
    return sum(span.begin <= at < span.end for span in sampling)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile (the smallest value that so many are not above) and maximum."""
    ranked = sorted(seconds)
    p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
    return {
        "median_s": round(statistics.median(ranked), 3),
        "p95_s": round(p95, 3),
        "max_s": round(ranked[-1], 3),
    }


def as_table(sections: dict[str, Any]) -> Table:
    title = f"interactive jobs behind long ones, {SLOTS} slots, steps of {STEP_S} s"
    table = Table("", "median", "p95", "maximum", "bar", "holds", title=title)
    for name, section in sections.items():
        bar, holds = (f"{section['bar_s']:.1f} s", yes(section)) if name == "preemption" else ("", "")
        label = name.replace("_", " ")
        table.add_row(f"{label}: wait for a slot", *_figures(section["wait"]), bar, holds)
        table.add_row("  first step done after", *_figures(section["first_step"]), "", "")
        full = f"{section['found_slots_full']} of {section['interactive']}"
        table.add_row("  found all slots taken", full, "", "", "", "")
        table.add_row("  long jobs parked", f"{section['parks']} times", "", "", "", "")
        table.add_row("  steps run twice", f"{section['steps_run_twice']}", "", "", "0", yes(_no_step_twice(section)))
    return table


def _no_step_twice(section: dict[str, Any]) -> dict[str, bool]:
    return {"holds": section["steps_run_twice"] == 0 and section["steps_run"] == section["steps"]}


def _figures(spread: dict[str, float]) -> list[str]:
    return [f"{spread[name]:.2f} s" for name in ("median_s", "p95_s", "max_s")]


if __name__ == "__main__":
    main()
