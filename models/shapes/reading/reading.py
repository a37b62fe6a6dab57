"""What was read from a clip, and the clean clip that shows just that."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deployments.mochi.streaming_decode import to_uint8
from models.shapes.scenes.draw import draw_clip
from models.shapes.scenes.scene import Figure, Scene, Track

Frames = npt.NDArray[np.uint8]

# Mean square of what rounding to whole numbers takes away.
ROUNDING = 1 / 12


@dataclass(frozen=True, slots=True)
class Flicker:
    """A blob, seen in too few of a clip's frames to be a figure."""

    area: float  # pixels
    frames_seen: int
    num_frames: int  # of the clip


@dataclass(frozen=True, slots=True)
class Reading:
    """What a clip shows."""

    background: str
    figures: tuple[Figure, ...] = ()  # the largest first
    tracks: tuple[Track, ...] = ()  # the fitted track of each figure
    flickers: tuple[Flicker, ...] = ()

    @property
    def scene(self) -> Scene:
        return Scene(self.figures, self.background)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What could not be read as a figure, in words."""
        if not self.figures and not self.flickers:
            return ("nothing stands out from the ground",)
        return tuple(
            f"a blob of {each.area:.0f} pixels was left out: it is in {each.frames_seen} of {each.num_frames} frames"
            for each in self.flickers
        )


def redraw(reading: Reading, height: int, width: int, num_frames: int) -> Frames:
    """The ideal clip of what was read: clean edges, the colours of the table, constant velocity. [F, H, W, 3] RGB."""
    return to_uint8(draw_clip(reading.scene, reading.tracks, height, width, num_frames)).numpy()


def redraw_psnr(frames: Frames, reading: Reading) -> float:
    """How near a clip is to the ideal one of what was read from it, in dB; higher is better.

    A wrong colour, a shape that wobbles, a blurred edge or an uneven motion all lower it; that the clip shows
    something else than it was asked for does not.
    """
    num_frames, height, width, _ = frames.shape
    return psnr(frames, redraw(reading, height, width, num_frames))


def psnr(frames: Frames, reference: Frames) -> float:
    """Peak signal-to-noise ratio in dB, over all values; at most 58.9, where only the rounding to bytes is left."""
    error = float(((frames.astype(np.float32) - reference) ** 2).mean())
    return 10 * math.log10(255**2 / max(error, ROUNDING))
