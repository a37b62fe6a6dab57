"""Pictures of the dashboards without a Grafana: their own expressions, asked of a Prometheus, drawn by matplotlib.

python -m monitoring.pictures --prometheus http://127.0.0.1:9090 --minutes 15 --out pictures
"""

import argparse
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter

from monitoring.boards.all import DASHBOARDS
from monitoring.grafana import WIDTH, Dashboard, Panel, Query
from monitoring.promql import for_prometheus

INCH = 0.72  # of a column of Grafana's grid
HEIGHT = 0.42  # of a line of it
POINTS = 240
MOST_SHOWN = 8  # names in a legend
LEGEND_SIZE = 6  # points
UNITS = {
    "percentunit": "%",
    "s": "s",
    "bytes": "B",
    "Bps": "B/s",
    "reqps": "/s",
    "ops": "/s",
    "watt": "W",
    "celsius": "°C",
}


@dataclass(frozen=True, slots=True)
class Span:
    """What is drawn: Unix seconds."""

    start: float
    end: float

    @property
    def step_s(self) -> float:
        return max(1.0, (self.end - self.start) / POINTS)


@dataclass(frozen=True, slots=True)
class Line:
    """One series: its name as in the legend, times and values."""

    name: str
    times: list[float]
    values: list[float]


class Source:
    """A Prometheus.

    Args:
        url: its root.
        job: of the server that is looked at.
        interval_s: between two scrapes, seconds.
    """

    def __init__(self, url: str, job: str, interval_s: float) -> None:
        self._url, self._job, self._interval_s = url, job, interval_s

    def lines(self, query: Query, span: Span) -> list[Line]:
        """The series of an expression over the span. Raises httpx.HTTPStatusError: it cannot be evaluated."""
        asked: dict[str, Any] = {
            "query": for_prometheus(query.expression, self._job, self._interval_s),
            "start": span.start,
            "end": span.end,
            "step": span.step_s,
        }
        answer = httpx.get(f"{self._url}/api/v1/query_range", params=asked, timeout=60)
        answer.raise_for_status()
        return [
            Line(
                _name(query.legend, series["metric"]),
                [float(at) for at, _ in series["values"]],
                [float(value) for _, value in series["values"]],
            )
            for series in answer.json()["data"]["result"]
        ]


def _name(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)


def draw(dashboard: Dashboard, source: Source, span: Span, path: Path) -> None:
    """A picture of all panels, where Grafana puts them."""
    lines = _laid_out(dashboard)
    height = sum(max(panel.height for panel in line) for line in lines)
    figure = pyplot.figure(figsize=(WIDTH * INCH, height * HEIGHT + 0.6), facecolor="white")
    figure.suptitle(f"mochi-serve: {dashboard.title}", x=0.01, y=0.995, ha="left", va="top", fontsize=13, weight="bold")
    inner, y = 1 - 0.6 / (height * HEIGHT + 0.6), 0
    for line in lines:
        x = 0
        tall = max(panel.height for panel in line)
        for panel in line:
            left, width = x / WIDTH, panel.width / WIDTH
            bottom, part = inner * (1 - (y + panel.height) / height), inner * panel.height / height
            if panel.kind == "number":
                box = (left + 0.01, bottom + 0.1 * part, width - 0.015, 0.55 * part)
            else:
                box = (left + 0.035, bottom + 0.24 * part, width - 0.045, 0.62 * part)
            _draw_panel(
                figure.add_axes(box), panel, [found for q in panel.queries for found in source.lines(q, span)], span
            )
            x += panel.width
        y += tall
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _laid_out(dashboard: Dashboard) -> list[list[Panel]]:
    lines: list[list[Panel]] = []
    for row in dashboard.rows:
        lines.append([])
        for panel in row.panels:
            if sum(other.width for other in lines[-1]) + panel.width > WIDTH:
                lines.append([])
            lines[-1].append(panel)
    return lines


def _draw_panel(axes: Axes, panel: Panel, found: list[Line], span: Span) -> None:
    unit = UNITS.get(panel.unit, "")
    axes.set_title(f"{panel.title} [{unit}]" if unit else panel.title, loc="left", fontsize=8)
    factor = 100 if panel.unit == "percentunit" else 1
    if not any(not math.isnan(value) for line in found for value in line.values):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="grey", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    if panel.kind == "number":
        newest = [value for line in found for value in line.values if not math.isnan(value)][-1]
        red = panel.red_from is not None and newest >= panel.red_from
        shown = f"{newest * factor:.4g}"
        axes.text(
            0.5,
            0.5,
            shown,
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=22,
            color="C3" if red else "C2",
        )
        axes.set_axis_off()
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=8)
        return
    if panel.kind == "areas":
        _draw_areas(axes, found, span, factor)
    else:
        for line in found:
            axes.plot(_dates(line.times), [value * factor for value in line.values], label=line.name, linewidth=1)
    if panel.red_from is not None:
        axes.axhline(panel.red_from * factor, color="C3", linestyle="--", linewidth=0.7)
    axes.set_xlim(*_dates([span.start, span.end]))
    axes.set_ylim(0, 1.08 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))  # type: ignore[no-untyped-call]
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    handles, labels = handles[:MOST_SHOWN], labels[:MOST_SHOWN]
    axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(-0.02, -0.09), ncols=3, frameon=False, fontsize=LEGEND_SIZE
    )


def _draw_areas(axes: Axes, found: list[Line], span: Span, factor: float) -> None:
    """On one another; a series is 0 where only others have a value."""
    times = [span.start + index * span.step_s for index in range(int((span.end - span.start) / span.step_s) + 1)]
    rows = []
    for line in found:
        known = {
            round((at - span.start) / span.step_s): value for at, value in zip(line.times, line.values, strict=True)
        }
        rows.append([known.get(index, math.nan) * factor for index in range(len(times))])
    stacked = np.array(rows)
    read = ~np.isnan(stacked).all(axis=0)  # where nothing was read there is a gap
    stacked = np.where(read, np.nan_to_num(stacked), np.nan)
    axes.stackplot(_dates(times), stacked, labels=[line.name for line in found], alpha=0.6)


def _dates(times: list[float]) -> Any:
    return np.array(times).astype("datetime64[s]")


def main() -> None:
    """Write a picture of each dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its root (%(default)s)")
    parser.add_argument("--job", default="mochi-serve", help="the scrape job of the server (%(default)s)")
    parser.add_argument("--interval-s", type=float, default=5.0, help="between two scrapes (%(default)s)")
    parser.add_argument("--minutes", type=float, default=15.0, help="so much of the past is drawn (%(default)s)")
    parser.add_argument("--end", type=float, default=None, help="Unix seconds of its end; now unless given")
    parser.add_argument("--format", default="png", choices=("png", "webp"))
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="a folder (%(default)s)")
    arguments = parser.parse_args()
    source = Source(arguments.prometheus, arguments.job, arguments.interval_s)
    end = arguments.end or time.time()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        path = arguments.out / f"{dashboard.name}.{arguments.format}"
        draw(dashboard, source, Span(end - arguments.minutes * 60, end), path)


if __name__ == "__main__":
    main()
