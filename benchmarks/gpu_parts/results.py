"""What was found: a line of JSON as soon as a figure is known, and at the end tables of all of them."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HEADINGS = {
    "tflops": "TFLOP/s",
    "of_ceiling": "of ceiling",
    "s_per_sample": "s/sample",
    "video_s": "64 steps, s",
    "gb_per_s": "GB/s",
    "state": "clock, power, heat",
}
UNITS = {"gb": "GB", "tflops": "TFLOP/s"}
ABOUT = ("part", "table", "name", "at_s")
REASONS = ("skipped", "failed")
SHOWN = 100

Line = dict[str, Any]


class Results:
    """Lines printed, and appended to `out` in such a way that a machine that stops loses none of them."""

    def __init__(self, out: Path | None = None) -> None:
        self.lines: list[Line] = []
        self._begun = time.perf_counter()
        self._out = out
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **line: Any) -> None:
        """at_s: seconds since these results were begun."""
        line = {key: plain(value) for key, value in line.items()}
        line["at_s"] = round(time.perf_counter() - self._begun, 1)
        self.lines.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        if self._out is not None:
            with self._out.open("a") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())


def plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: those become words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def print_tables(console: Console, lines: list[Line]) -> None:
    """The tables in the order in which their first rows came, then what became of each part."""
    for title in dict.fromkeys(line["table"] for line in lines if "table" in line):
        console.print(figures_table(title, [line for line in lines if line.get("table") == title]))
    console.print(parts_table([line for line in lines if "took_s" in line]))


def figures_table(title: str, lines: list[Line]) -> Table:
    """A row a line; what was not measured stays empty. Lists are left to the JSON."""
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    columns = dict.fromkeys(key for line in lines for key in line if _is_column(line, key))
    for key in columns:
        table.add_column(heading(key))
    for line in lines:
        table.add_row(line["name"] + reason(line), *(shown(line.get(key)) for key in columns))
    return table


def parts_table(lines: list[Line]) -> Table:
    table = Table("part", "s", "", title="parts", title_justify="left")
    for line in lines:
        table.add_row(line["part"], shown(line["took_s"]), reason(line).strip())
    return table


def machine_table(machine: Line) -> Table:
    table = Table(title="device and versions", title_justify="left", show_header=False)
    for name, value in machine.items():
        table.add_row(heading(name), shown(value))
    return table


def _is_column(line: Line, key: str) -> bool:
    return key not in (*ABOUT, *REASONS, "where") and not isinstance(line[key], list)


def heading(key: str) -> str:
    """For people: `peak_gb` is peak GB."""
    words = key.split("_")
    return HEADINGS.get(key) or " ".join(UNITS.get(word, word) for word in words)


def shown(value: Any) -> str:
    return "" if value is None else str(value)


def reason(line: Line) -> str:
    """Why there is no figure, its first line; empty when there is one."""
    found = next((f"{word}: {line[word]}" for word in REASONS if word in line), "")
    return found and f" ({found.splitlines()[0][:SHOWN]})"
