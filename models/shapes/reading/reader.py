"""Reads from the pixels of a clip, without a model, what it shows."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from models.shapes.reading.blobs import Blob, find_blobs
from models.shapes.reading.fitting import Fit, best_fit
from models.shapes.reading.reading import Flicker, Frames, Reading
from models.shapes.scenes.scene import (
    BACKGROUNDS,
    CLIP_FRAMES,
    COLOURS,
    DIRECTIONS,
    SIZES,
    SPEEDS,
    Figure,
    Range,
    Track,
)

Floats = npt.NDArray[np.float32]

# Distance from the ground in RGB (0 to 1) from which on a pixel is figure. The weakest contrast of the tables is 0.46
# (green on grey), so that a figure painted half as strongly is still seen, and noise of the usual 0.03 is not.
CONTRAST = 0.2
# Of the shorter side: what is taken off all around a blob, so that two figures with blurred edges come apart. The
# inside of a small star reaches 0.066 from its centre.
EDGE = 1 / 40
# Of the area of the smallest figure: a smaller blob is a speck. Without its edge a small star has a quarter.
LEAST_AREA = 0.08
# Of all frames: what is seen in fewer is not a figure of the clip but a flicker.
LEAST_SEEN = 0.5
# Half of the slowest way, in the unit of SPEEDS: below it a figure is still.
STILL = SPEEDS["slow"][0] / 2


def read_clip(frames: Frames) -> Reading:
    """Read a clip.

    Args:
        frames: [F, H, W, 3] uint8 RGB; below 64 pixels small shapes can no longer be told apart reliably.

    Returns:
        What it shows; without figures if none can be made out. Never raises for what a clip shows.
    """
    num_frames = len(frames)
    pixels: Floats = frames.astype(np.float32) / np.float32(255)
    # Figures cover less than half of the picture, so the median is the ground.
    ground: Floats = np.median(pixels.reshape(-1, 3), axis=0).astype(np.float32)
    blobs = _seen_blobs(pixels, ground)
    lasting = [blob for blob in blobs if _lasts(blob, num_frames)]
    found = sorted((_figure(pixels, ground, blob) for blob in lasting), key=lambda each: -each[1].radius)
    return Reading(
        nearest_colour(ground, BACKGROUNDS),
        tuple(figure for figure, _ in found),
        tuple(track for _, track in found),
        tuple(Flicker(blob.area, len(blob.frames_seen), num_frames) for blob in blobs if not _lasts(blob, num_frames)),
    )


def _lasts(blob: Blob, num_frames: int) -> bool:
    return len(blob.frames_seen) >= LEAST_SEEN * num_frames


def _seen_blobs(pixels: Floats, ground: Floats) -> list[Blob]:
    side = min(pixels.shape[1:3])
    smallest = math.pi * (SIZES["small"][0] * side) ** 2
    standing_out = np.linalg.norm(pixels - ground, axis=-1) > CONTRAST
    return find_blobs(standing_out, round(EDGE * side), LEAST_AREA * smallest)


def _figure(pixels: Floats, ground: Floats, blob: Blob) -> tuple[Figure, Track]:
    side = min(pixels.shape[1:3])
    colour = _inner_colour(pixels, ground, blob)
    away = colour - ground
    # The bound is for noise, whose colours may cancel out to the ground's.
    coverage = (pixels - ground) @ away / max(float(away @ away), CONTRAST**2)
    fit = best_fit(torch.from_numpy(coverage.clip(0, 1)), blob, round(EDGE * side))
    track = _track(fit, side)
    direction, speed = motion(track)
    name = nearest_colour(colour, COLOURS)
    return Figure(name, fit.shape, direction, nearest_range(track.radius, SIZES), speed), track


def _inner_colour(pixels: Floats, ground: Floats, blob: Blob) -> Floats:
    """The mean of the half that stands out more: edges are mixed with the ground, most of all in compressed colour."""
    values = pixels[blob.frame, blob.row, blob.column]
    contrast = np.linalg.norm(values - ground, axis=-1)
    inner: Floats = values[contrast >= np.median(contrast)].mean(axis=0)
    return inner


def _track(fit: Fit, side: int) -> Track:
    x, y = fit.line.start
    dx, dy = fit.line.step
    return Track(fit.radius / side, (x / side, y / side), (dx / side, dy / side))


def motion(track: Track) -> tuple[str, str]:
    """Direction and speed of a track by name. The speed of a still figure is `normal` and says nothing."""
    way = [step * (CLIP_FRAMES - 1) for step in track.step]
    if max(abs(part) for part in way) < STILL:
        return "still", "normal"
    direction = max((name for name in DIRECTIONS if name != "still"), key=lambda name: _along(way, DIRECTIONS[name]))
    axes = [abs(part) for part, sign in zip(way, DIRECTIONS[direction], strict=True) if sign]
    return direction, nearest_range(sum(axes) / len(axes), SPEEDS)


def _along(way: Sequence[float], direction: tuple[int, int]) -> float:
    """Length of a way along a direction: greatest for the one of the eight that is nearest in angle."""
    return (way[0] * direction[0] + way[1] * direction[1]) / math.hypot(*direction)


def nearest_colour(colour: Floats, table: Mapping[str, tuple[float, float, float]]) -> str:
    return min(table, key=lambda name: float(np.linalg.norm(colour - np.array(table[name]))))


def nearest_range(value: float, table: Mapping[str, Range]) -> str:
    """The name of the range that a value is in or nearest to."""
    return min(table, key=lambda name: max(table[name][0] - value, value - table[name][1]))
