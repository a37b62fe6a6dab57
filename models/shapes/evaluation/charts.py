"""Pictures of an evaluation: curves of quality, and a sheet of clips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from PIL import Image, ImageDraw, ImageFont

from models.shapes.reading.reading import Frames

BLUE = "#1f5fbf"
ORANGE = "#c8600a"
GRID = "#e3e3e3"
SHEET_COLUMNS = 8
TILE = 96
GAP = 4
CAPTION = 24
MARGIN = 10
CAPTION_SIZE = 14

Point = dict[str, Any]


def draw_quality(sweep: dict[str, list[Point]], path: Path) -> None:
    """Share right (above) and redraw PSNR (below), against steps (left) and guidance (right), with 95 % intervals."""
    picture = Figure(figsize=(8, 5.2), dpi=200, layout="constrained", facecolor="white")
    panels = picture.subplots(2, 2, sharex="col", sharey="row")
    for column, (name, label) in enumerate([("steps", "denoising steps"), ("guidance", "guidance scale")]):
        points = sweep[name]
        other = "guidance" if name == "steps" else "steps"
        for key, style in (("all_three", "o-"), ("everything", "s--")):
            _curve(panels[0, column], points, name, key, "share", style)
        _curve(panels[1, column], points, name, "redraw_psnr_db", "mean", "o-")
        panels[0, column].set_title(f"{other} {points[0][other]:g}", fontsize=11)
        panels[1, column].set_xlabel(label)
    for panel in panels[:, 0]:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator([point["steps"] for point in sweep["steps"]]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter("{x:g}")
    panels[0, 0].set_ylabel("clips right")
    panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[1, 0].set_ylabel("redraw PSNR, dB")
    panels[0, 0].legend(frameon=False, fontsize=9, loc="lower right")
    picture.savefig(path)


_LABELS = {"all_three": "colour, direction, shape", "everything": "everything", "redraw_psnr_db": "redraw PSNR"}


def _curve(panel: Axes, points: Sequence[Point], name: str, key: str, level: str, style: str) -> None:
    x = [point[name] for point in points]
    low, middle, high = ([point[key][part] for point in points] for part in ("low", level, "high"))
    colour = ORANGE if key == "everything" else BLUE
    panel.plot(x, middle, style, color=colour, markersize=4.5, linewidth=1.6, label=_LABELS[key])
    panel.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    panel.grid(color=GRID, linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def draw_sheet(prompts: Sequence[str], clips: Sequence[Frames]) -> Image.Image:
    """A row of frames for each clip, evenly spaced in time, its prompt above."""
    height, width = clips[0].shape[1:3]
    tile = round(TILE * width / height), TILE
    row = CAPTION + TILE + GAP
    across = SHEET_COLUMNS * (tile[0] + GAP) - GAP
    sheet = Image.new("RGB", (across + 2 * MARGIN, len(clips) * row + 2 * MARGIN - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=CAPTION_SIZE)
    for number, (prompt, clip) in enumerate(zip(prompts, clips, strict=True)):
        top = MARGIN + number * row
        draw.text((MARGIN, top + CAPTION / 2), prompt, fill="#222222", font=font, anchor="lm")
        for column, frame in enumerate(np.linspace(0, len(clip) - 1, SHEET_COLUMNS).round().astype(int)):
            picture = Image.fromarray(clip[frame]).resize(tile, Image.Resampling.BICUBIC)
            sheet.paste(picture, (MARGIN + column * (tile[0] + GAP), top + CAPTION))
    return sheet
