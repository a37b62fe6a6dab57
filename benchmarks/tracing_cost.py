"""What traces cost: without an exporter a denoising step and a read of a video, and with one a span.

    python benchmarks/tracing_cost.py
    python benchmarks/tracing_cost.py --rounds 30 --out benchmarks/results/tracing_cost.json

Seconds are the processor's. What is added to a step and to a read is timed alone, as in `metrics_cost.py`: it is too
little to be seen in the difference. Prints a table and, last, one line of JSON.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from benchmarks.metrics_cost import CALLS, read_section, seconds_of, step_section
from deployments.settings import TracingSettings
from deployments.tracing.context import TraceContext
from deployments.tracing.otlp import OtlpExport
from deployments.tracing.span import SILENT
from deployments.tracing.tracer import Tracer
from serve_app.ingress.request_trace import BEGUN, end_request_trace

PARENT = TraceContext("a" * 32, "b" * 16, True)


class _Step:
    """The state that a step's recording keeps for its spans."""

    step = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds: int = arguments.rounds
    step_us, read_us = step_section(rounds)["without_us"], asyncio.run(read_section(rounds))["without_us"]
    costs = {
        "a step, none": median_us(_after_step, rounds),
        "a read, none": median_us(_around_read, rounds),
        "a span, none": median_us(lambda: _span(Tracer()), rounds),
        "a span, otlp": otlp_us(rounds),
    }
    table = Table("", "cost", "beside", title="What traces cost")
    for name, cost_us in costs.items():
        beside = {"a step, none": step_us, "a read, none": read_us}.get(name)
        share = "" if beside is None else f"{beside:,.0f} µs: {cost_us / beside:.4%}"
        table.add_row(name, f"{cost_us:.2f} µs", share)
    Console().print(table)
    found = {"step_us": step_us, "read_us": read_us, **{name.replace(", ", "_"): us for name, us in costs.items()}}
    publish({"device": describe_machine(torch.device("cpu")), "costs": found}, arguments.out)


def median_us(work: Callable[[], object], rounds: int) -> float:
    """Of one call, in microseconds."""
    return round(statistics.median(seconds_of(work, CALLS) for _ in range(rounds)) * 1e6, 3)


def _after_step() -> None:
    """As `Recording.take` does after each step, a checkpoint with it, which is not due at each."""
    _Step.step = 7
    if SILENT is None:
        raise AssertionError
    SILENT.event("checkpoint")


def _around_read() -> None:
    """As `RateLimitHeaders` does around each request."""
    scope: dict[str, object] = {BEGUN: time.time_ns()}
    end_request_trace(scope, 200)


def _span(tracer: Tracer) -> None:
    with tracer.begin("sample", PARENT, {"mochi_serve.job.id": "video_1"}) as span:
        span.event("parked", {"mochi_serve.step": 3})


def otlp_us(rounds: int) -> float:
    """With the batch's thread, but without the collector."""
    tracer = Tracer()
    export = OtlpExport(TracingSettings(exporter="otlp", endpoint="http://127.0.0.1:1"), "here", InMemorySpanExporter())
    tracer.send_to(export.emit)
    return median_us(lambda: _span(tracer), rounds)


if __name__ == "__main__":
    main()
