"""Draw where the time of a step goes, from the results of `gpu.py`.

    cd benchmarks/results && python ../plot_step.py gpu_h100_3.jsonl gpu_h100_5.jsonl --out step.svg

Prints the table that it draws and, last, one line of JSON. Needs matplotlib and rich.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

# The kinds of kernel as `gpu.py` tells them, in the order in which they are stacked, with their colours.
PARTS = {
    "attention": ("attention_ms", "#3b6ea5"),
    "products": ("product_ms", "#7fb069"),
    "fused elementwise": ("fused_ms", "#e6aa68"),
    "elementwise": ("elementwise_ms", "#ca3c25"),
    "copies": ("copy_ms", "#8d99ae"),
}
# The rows of the table "kernels", and what they are called here.
STEPS = {
    "stock step": "diffusers",
    "our step": "exact, not compiled",
    "our step, compiled": "exact (compiled)",
    "our step, fp8, compiled": "with fp8 products, torch's attention",
    "our step, fp8 attention, compiled": "with fp8 attention",
}

Seconds = dict[str, float]


def main() -> None:
    arguments = _arguments()
    lines = [json.loads(line) for path in arguments.results for line in path.read_text().splitlines()]
    found = seconds_by_part(lines)
    if not found:
        raise SystemExit(f"none of the files has kernels of {', '.join(STEPS)}: run benchmarks/gpu.py on a GPU")
    draw(found, arguments.out)
    table = Table("a step, s", *PARTS, "sum", title=f"written to {arguments.out}", title_justify="left")
    for name, parts in found.items():
        table.add_row(name, *(f"{value:.2f}" for value in parts.values()), f"{sum(parts.values()):.2f}")
    Console().print(table)
    print(json.dumps({"benchmark": "plot_step", "steps": found}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that `gpu.py --out` wrote")
    parser.add_argument("--out", type=Path, required=True, help="the picture; its ending is its form")
    return parser.parse_args()


def seconds_by_part(lines: list[dict[str, Any]]) -> dict[str, Seconds]:
    """Of each step that was broken down, in the order of STEPS."""
    told = {line["name"]: line for line in lines if line.get("table") == "kernels"}
    return {
        title: {part: told[name].get(field, 0.0) / 1e3 for part, (field, _) in PARTS.items()}
        for name, title in STEPS.items()
        if name in told
    }


def draw(steps: dict[str, Seconds], out: Path) -> None:
    """A bar for each step, its parts beside each other, the first step on top."""
    figure = Figure(figsize=(8, 0.55 * len(steps) + 1.1), layout="constrained")
    axes = figure.subplots()
    names = list(steps)[::-1]
    left = [0.0] * len(names)
    for part, (_, colour) in PARTS.items():
        widths = [steps[name][part] for name in names]
        axes.barh(names, widths, left=left, color=colour, label=part)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    for at, total in enumerate(left):
        axes.text(total + 0.05, at, f"{total:.2f}", va="center")
    axes.set_xlim(0, 1.08 * max(left))
    axes.set_xlabel("seconds of one guided step, 848x480, 163 frames")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(PARTS), frameon=False)
    figure.savefig(out)


if __name__ == "__main__":
    main()
