"""Autoscaling by our own policy in simulated time: waits against targets, GPU-hours against what they cost at least.

A day of traffic with bursts goes through a simulated cluster once for each policy: the one that is
served, and Serve's default. See README.md.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.autoscaling_parts.cluster import Cluster, Outcome
from benchmarks.autoscaling_parts.policies import OurPolicy, Policy, ServePolicy
from benchmarks.autoscaling_parts.traffic import draw_day, least_gpu_s
from serve_app.config import SchedulingSettings
from serve_app.jobs import Tier

TARGETS_S: dict[Tier, float] = {tier: getattr(SchedulingSettings().target_wait_s, tier.value) for tier in Tier}
BAR_WITHIN, BAR_COST = 0.95, 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="*", default=[8, 40], help="that there may be")
    parser.add_argument("--starts", type=float, nargs="*", default=[30.0, 240.0], help="seconds of a start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=["ours", "serve 1", "serve 2"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begun_at = time.process_time()
    days = [day(gpus, start_s, options.seed, options.only) for gpus in options.gpus for start_s in options.starts]
    Console(width=130).print(as_table(days))
    result = {
        "benchmark": "autoscaling",
        "seed": options.seed,
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
    policies: dict[str, Callable[[], Policy]] = {
        "ours": lambda: OurPolicy(TARGETS_S, start_s, gpus),
        "serve 1": lambda: ServePolicy(1.0, gpus),
        "serve 2": lambda: ServePolicy(2.0, gpus),
    }
    outcomes = {name: Cluster(traffic, policies[name](), start_s).run() for name in names}
    return {
        "gpus": gpus,
        "start_s": start_s,
        "jobs": len(traffic.jobs),
        "least_gpu_h": round(least_s / 3600, 2),
        "policies": {name: summary(outcome, least_s) for name, outcome in outcomes.items()},
    }


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
        "gpu_h": round(outcome.gpu_s / 3600, 2),
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
    title = (
        f"A day of bursts; bars: {BAR_WITHIN:.0%} of the jobs within their target, {BAR_COST} of the least GPU-hours"
    )
    table = Table(
        "GPUs",
        "start",
        "jobs",
        "policy",
        "within",
        "inter.",
        "stand.",
        "batch",
        "GPU-h",
        "of least",
        "starts",
        "holds",
        title=title,
    )
    for one in days:
        for name, found in one["policies"].items():
            tiers = [f"{found['within_by_tier'][tier.value]:.1%}" for tier in Tier]
            table.add_row(
                str(one["gpus"]),
                f"{one['start_s']:.0f} s",
                str(one["jobs"]),
                name,
                f"{found['within']:.1%}",
                *tiers,
                f"{found['gpu_h']:.1f}",
                f"{found['of_least']:.2f}",
                str(found["starts"]),
                "yes" if found["holds"] else "no",
            )
    return table


if __name__ == "__main__":
    main()
