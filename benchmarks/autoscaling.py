"""Autoscaling by our own policy in simulated time: waits against targets, GPU-hours against what they cost at least.

A day of traffic with bursts goes through a simulated cluster once for each policy: the one that is
served, and Serve's default. See README.md.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.autoscaling_parts.cluster import Cluster, Outcome
from benchmarks.autoscaling_parts.hindsight import least_gpu_s
from benchmarks.autoscaling_parts.policies import AllPolicy, OurPolicy, Policy, ServePolicy
from benchmarks.autoscaling_parts.traffic import GPUS, draw_day
from deployments.messages import VIDEO_STAGES, Stage
from serve_app.config import SchedulingSettings
from serve_app.jobs import Tier
from serve_app.scheduling.scaling.capacity import MARGIN_S

TARGETS_S: dict[Tier, float] = {tier: SchedulingSettings().target_wait_s.of(tier) for tier in Tier}
BAR_WITHIN, BAR_COST = 0.95, 1.15


def policies(start_s: float, gpus: int) -> dict[str, Callable[[], Policy]]:
    """All that can be tried, by name; README.md says what each is."""
    ours = partial(OurPolicy, TARGETS_S, start_s, gpus)
    return {
        "ours": ours,
        "serve 1": lambda: ServePolicy(1.0, gpus),
        "serve 2": lambda: ServePolicy(2.0, gpus),
        "no headroom": partial(ours, worth_s=0.0),
        "stays a start": partial(ours, hold_s=start_s),
        "stays not": partial(ours, hold_s=0.0),
        "spares long": partial(ours, patience_s=600.0),
        "oracle": partial(ours, worth_s=0.0, hold_s=0.0, foresight_s=start_s + MARGIN_S),
        "all": lambda: AllPolicy(gpus),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="*", default=[8, 40], help="that there may be")
    parser.add_argument("--starts", type=float, nargs="*", default=[30.0, 240.0], help="seconds of a start")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="each draws a day")
    parser.add_argument("--only", nargs="*", default=["ours", "serve 2"], help=f"of {', '.join(policies(1.0, 1))}")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begun_at = time.process_time()
    days = [
        day(gpus, start_s, seed, options.only)
        for gpus in options.gpus
        for start_s in options.starts
        for seed in options.seeds
    ]
    Console(width=130).print(as_table(days))
    result = {
        "benchmark": "autoscaling",
        "targets_s": {tier.value: seconds for tier, seconds in TARGETS_S.items()},
        "bars": {"within": BAR_WITHIN, "cost": BAR_COST},
        "processor_s": round(time.process_time() - begun_at, 1),
        "days": days,
    }
    line = json.dumps(result)
    print(line)
    if options.out is not None:
        options.out.write_text(line + "\n", encoding="utf-8")


def day(gpus: int, start_s: float, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """One day by each policy."""
    traffic = draw_day(gpus, seed)
    least_s = least_gpu_s(traffic, TARGETS_S, start_s)
    known = policies(start_s, gpus)
    outcomes = {name: Cluster(traffic, known[name](), start_s).run() for name in names}
    return {
        "gpus": gpus,
        "start_s": start_s,
        "seed": seed,
        "jobs": len(traffic.jobs),
        "work_gpu_h": hours({s: GPUS[s] * sum(job.seconds[s] for job in traffic.jobs) for s in VIDEO_STAGES}),
        "least_gpu_h": hours(least_s),
        "policies": {name: summary(outcome, sum(least_s.values())) for name, outcome in outcomes.items()},
    }


def hours(seconds: Mapping[Stage, float]) -> dict[str, float]:
    return {stage.value: round(s / 3600, 2) for stage, s in seconds.items()}


def summary(outcome: Outcome, least_s: float) -> dict[str, Any]:
    """The figures of a day."""
    waits = [(wait, TARGETS_S[tier]) for tier, all_waits in outcome.waits.items() for wait in all_waits]
    within, cost = share_within(waits), outcome.gpu_s / least_s
    return {
        "within": round(within, 4),
        "within_by_tier": {
            tier.value: round(share_within([(wait, TARGETS_S[tier]) for wait in tier_waits]), 4)
            for tier, tier_waits in outcome.waits.items()
        },
        "p95_wait_s": {tier.value: round(percentile(waits, 0.95), 1) for tier, waits in outcome.waits.items()},
        "gpu_h": hours({stage: GPUS[stage] * s for stage, s in outcome.paid_s.items()}),
        "starting_gpu_h": hours({stage: GPUS[stage] * s for stage, s in outcome.starting_s.items()}),
        "of_least": round(cost, 3),
        "starts": outcome.starts,
        "most_samplers": outcome.most_samplers,
        "moved": outcome.moved,
        "holds": within >= BAR_WITHIN and cost <= BAR_COST,
    }


def share_within(waits: Sequence[tuple[float, float]]) -> float:
    """Of waits with their targets."""
    return sum(wait <= target for wait, target in waits) / len(waits) if waits else 1.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share is not above."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else 0.0


def as_table(days: Sequence[dict[str, Any]]) -> Table:
    """Of several seeds the median, and the worst in brackets."""
    columns = ("GPUs", "start", "policy", "within", "inter.", "stand.", "batch", "GPU-h", "of least", "starts", "holds")
    table = Table(
        *columns,
        title=f"A day of bursts; bars: {BAR_WITHIN:.0%} of the jobs within target, {BAR_COST} of the least GPU-hours",
    )
    settings = list(dict.fromkeys((one["gpus"], one["start_s"]) for one in days))
    for gpus, start_s in settings:
        alike = [one for one in days if (one["gpus"], one["start_s"]) == (gpus, start_s)]
        for name in alike[0]["policies"]:
            found = [one["policies"][name] for one in alike]
            within, cost = [f["within"] for f in found], [f["of_least"] for f in found]
            table.add_row(
                str(gpus),
                f"{start_s:.0f} s",
                name,
                f"{median(within):.1%} ({min(within):.1%})",
                *(f"{median(f['within_by_tier'][tier.value] for f in found):.1%}" for tier in Tier),
                f"{median(sum(f['gpu_h'].values()) for f in found):.1f}",
                f"{median(cost):.2f} ({max(cost):.2f})",
                f"{median(f['starts'] for f in found):.0f}",
                f"{sum(f['holds'] for f in found)} of {len(found)}",
            )
    return table


if __name__ == "__main__":
    main()
