"""Draw one job's way from the spans that a real server sent: it is parked by an interactive job, moved, and made.

    python benchmarks/job_trace.py --out docs/trace.svg
    python benchmarks/job_trace.py --spans trace.json --out trace.svg

The first starts a server on this machine with the included model, a collector beside it, and does to a job what
`tests/system/test_traces.py` does; `--keep` writes what came. Prints a table and, last, one line of JSON. Needs
matplotlib and rich.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.servers.server import running_server
from tests.support.tracing import moved_job
from tests.support.tracing.collector import SentEvent, SentSpan, running_collector

COLOURS = {
    "ingress": "#3b6ea5",
    "registry": "#8d99ae",
    "encoder": "#7fb069",
    "sampler": "#e6aa68",
    "decoder": "#ca3c25",
}
EVENTS = {"yield asked": "v", "parked": "s", "resumed": "^", "preview": "."}
MARK = "#222222"
WAITING = "#d8dce3"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spans", type=Path, help="draw these, and start no server")
    parser.add_argument("--keep", type=Path, help="write the spans to this file, as JSON")
    parser.add_argument("--out", type=Path, default=Path("trace.svg"))
    arguments = parser.parse_args()
    spans = from_json(arguments.spans.read_text()) if arguments.spans else traced_job()
    if arguments.keep:
        arguments.keep.write_text(json.dumps([asdict(span) for span in spans], indent=1))
    draw(spans, arguments.out)
    Console().print(as_table(spans))
    print(json.dumps({"benchmark": "job_trace", "spans": len(spans), "seconds": round(length_s(spans), 2)}))


def traced_job() -> list[SentSpan]:
    """The spans of a job that a server has just made."""
    with (
        tempfile.TemporaryDirectory(prefix="job-trace-") as folder,
        running_collector() as collector,
        running_server(Path(folder), moved_job.settings(collector)) as server,
    ):
        return moved_job.make(server, collector).spans


def from_json(text: str) -> list[SentSpan]:
    """What `--keep` wrote."""
    return [
        SentSpan(**span | {"events": tuple(SentEvent(**event) for event in span["events"])})
        for span in json.loads(text)
    ]


def length_s(spans: list[SentSpan]) -> float:
    """From the first beginning to the last end."""
    return (max(span.end_ns for span in spans) - min(span.start_ns for span in spans)) / 1e9


def in_order(spans: list[SentSpan]) -> list[tuple[int, SentSpan]]:
    """Each with its depth, parents before children, the earlier first."""
    ids = {span.span_id for span in spans}
    children: dict[str | None, list[SentSpan]] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, -span.end_ns)):
        children.setdefault(span.parent_id if span.parent_id in ids else None, []).append(span)
    rows: list[tuple[int, SentSpan]] = []

    def add(parent: str | None, depth: int) -> None:
        for span in children.get(parent, []):
            rows.append((depth, span))
            add(span.span_id, depth + 1)

    add(None, 0)
    return rows


def label(span: SentSpan) -> str:
    """What stands beside its bar."""
    begin, end = (span.attributes.get(f"mochi_serve.step.{part}") for part in ("from", "to"))
    return span.name if end is None else f"steps {begin} to {end}"


def draw(spans: list[SentSpan], path: Path) -> None:
    """A row a span, over the seconds since the first began."""
    rows = in_order(spans)
    origin = min(span.start_ns for span in spans)
    whole = length_s(spans)
    matplotlib.rcParams |= {"svg.hashsalt": "trace", "svg.fonttype": "none"}
    figure = Figure(figsize=(10, 0.9 + 0.2 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for row, (depth, span) in enumerate(rows):
        _draw_row(axes, row, depth, span, origin, whole)
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.set_xlim(0, whole * 1.01)
    axes.set_yticks(range(len(rows)), ["   " * depth + label(span) for depth, span in rows], fontsize=7.5, ha="left")
    axes.tick_params(axis="y", length=0, pad=132)
    axes.set_xlabel("seconds since the request")
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _legend(figure, axes)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_row(axes: Axes, row: int, depth: int, span: SentSpan, origin: int, whole: float) -> None:
    start, seconds = (span.start_ns - origin) / 1e9, (span.end_ns - span.start_ns) / 1e9
    waits = span.name.startswith("wait for")
    colour = WAITING if waits else COLOURS[span.service.rpartition("-")[2]]
    # What took milliseconds is seen too.
    axes.barh(row, max(seconds, whole / 500), left=start, height=0.62, color=colour, linewidth=0)
    for event in span.events:
        if (marker := EVENTS.get(event.name)) is not None:
            size = 2.5 if marker == "." else 5
            axes.plot((event.at_ns - origin) / 1e9, row, marker, color=MARK, markersize=size, markeredgewidth=0)


def _legend(figure: Figure, axes: Axes) -> None:
    bars = [axes.barh(-9, 0, color=colour, label=name) for name, colour in COLOURS.items()]
    bars.append(axes.barh(-9, 0, color=WAITING, label="waits"))
    marks = [
        axes.plot([], [], marker, color=MARK, markersize=5, linestyle="none", label=name)[0]
        for name, marker in EVENTS.items()
    ]
    figure.legend(handles=[*bars, *marks], loc="outside upper center", ncols=10, frameon=False, fontsize=7.5)


def as_table(spans: list[SentSpan]) -> Table:
    origin = min(span.start_ns for span in spans)
    table = Table("span", "process", "begins", "seconds", "events", box=None)
    for depth, span in in_order(spans):
        seconds = (span.end_ns - span.start_ns) / 1e9
        events = ", ".join(event.name for event in span.events if event.name not in ("preview", "checkpoint"))
        begins = (span.start_ns - origin) / 1e9
        table.add_row(
            "  " * depth + label(span), span.service.rpartition("-")[2], f"{begins:.3f}", f"{seconds:.3f}", events
        )
    return table


if __name__ == "__main__":
    main()
