"""What counting costs: a denoising step and a read of a video, with the metrics and without.

    python benchmarks/metrics_cost.py
    python benchmarks/metrics_cost.py --rounds 30 --out benchmarks/results/metrics_cost.json

The step is the included model's smallest, alone in its pass: the shortest one there is, beside which counting weighs
most. Seconds are the processor's. Prints a table and, last, one line of JSON.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from starlette.routing import Route
from starlette.types import ASGIApp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from deployments.messages import VideoSpec
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from deployments.mochi.denoise import denoise_step
from deployments.mochi.probe import probe_sample
from deployments.mochi.weights.loading import load_transformer
from deployments.sampler.step_loop import count_step
from serve_app.ingress.app import create_app
from serve_app.ingress.routes.metrics import RequestCounts
from serve_app.jobs import Submission, new_job_id
from tests.support.http.fakes import FakeServices
from tests.support.workers.fakes import SHAPES

SPEC = VideoSpec("a red circle", "", 64, 64, 7, 24, 20, 3.0, 1)
CALLS = 2000  # of what takes microseconds, for one figure
READS = 500
ROUTE = Route("/v1/videos/{video_id}", lambda _: None)
TEXT_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    step = step_section(arguments.rounds)
    read = asyncio.run(read_section(arguments.rounds))
    Console().print(as_table({"step": step, "read": read}))
    publish({"device": describe_machine(torch.device("cpu")), "step": step, "read": read}, arguments.out)


@torch.no_grad()
def step_section(rounds: int) -> dict[str, float]:
    """The step alone, and all that is counted for it alone: it is too little to be seen in the difference."""
    transformer = load_transformer(SHAPES, "float32", torch.device("cpu"))
    samples = [probe_sample(transformer, SPEC.clip.latents, TEXT_TOKENS)]
    denoise_step(transformer, samples)
    steps, counts = [], []
    for _ in range(rounds):
        steps.append(seconds_of(lambda: denoise_step(transformer, samples), 1))
        counts.append(seconds_of(lambda: _count(samples), CALLS))
    return summary(steps, [s + c for s, c in zip(steps, counts, strict=True)], counts)


def _count(samples: list[Any]) -> None:
    count_step(SPEC, samples, 1_000_000)
    RECORDER.count(names.BUSY_SECONDS, "sampling", by=0.001)


async def read_section(rounds: int) -> dict[str, float]:
    """GET of a video from the feed's cache, through the whole app but the socket; and the counting alone, which is too
    little to be seen in the difference of two reads.
    """
    services = FakeServices()
    job = services.memory.insert(Submission(new_job_id(), services.settings.model.name, SPEC))
    app = create_app(services)
    counts = RequestCounts(app.routes)
    scope = {"method": "GET", "route": ROUTE}
    async with app.router.lifespan_context(app):
        await services.feed.access()
        await read(app, job.id)
        with_metrics, cost = [], []
        for _ in range(rounds):
            with_metrics.append(await seconds_of_reads(app, job.id))
            cost.append(seconds_of(lambda: counts.count(scope, 200, 0.001), CALLS))
    return summary([a - b for a, b in zip(with_metrics, cost, strict=True)], with_metrics, cost)


async def seconds_of_reads(app: ASGIApp, video_id: str) -> float:
    """Of the processor, for one read: other work on the machine does not count."""
    begun = time.thread_time()
    for _ in range(READS):
        await read(app, video_id)
    return (time.thread_time() - begun) / READS


async def read(app: ASGIApp, video_id: str) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"/v1/videos/{video_id}",
        "raw_path": f"/v1/videos/{video_id}".encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    if status != 200:
        raise SystemExit(f"the read was answered with {status}")


def seconds_of(work: Callable[[], object], calls: int) -> float:
    """Of the processor, for one call."""
    begun = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - begun) / calls


def summary(without: list[float], with_metrics: list[float], cost: list[float]) -> dict[str, float]:
    """Medians in microseconds, and the cost's share of the work."""
    base, added = statistics.median(without), statistics.median(cost)
    return {
        "without_us": round(base * 1e6, 1),
        "with_us": round(statistics.median(with_metrics) * 1e6, 1),
        "cost_us": round(added * 1e6, 2),
        "share": round(added / base, 5),
    }


def as_table(sections: dict[str, dict[str, float]]) -> Table:
    table = Table("", "without", "with metrics", "cost", "share", title="What the metrics cost")
    for name, section in sections.items():
        table.add_row(
            name,
            f"{section['without_us']:,.1f} µs",
            f"{section['with_us']:,.1f} µs",
            f"{section['cost_us']:.2f} µs",
            f"{section['share']:.3%}",
        )
    return table


if __name__ == "__main__":
    main()
