"""From the size that a request asks for to one that the model makes. Pure.

Clients of hosted video models have sizes built in, and cannot be told others. One of these, "auto", and a shape alone
(`aspect_ratio`, `resolution`) mean the model's nearest size of the same shape. Every other size is made as it is asked
for, or refused.
"""

import math
import re
from dataclasses import dataclass

from deployments.clip import PIXELS_PER_TOKEN, is_side
from deployments.settings import ModelSettings

AUTO = "auto"
# What clients offer their users or send by default: the `openai` package and n8n's node (the first four), forks of Open
# WebUI, front ends of Mochi 1 and of 480p, 720p and 1080p models.
BUILT_IN_SIZES = (
    *("1280x720", "720x1280", "1792x1024", "1024x1792"),
    *("864x480", "480x864", "848x480", "480x848", "832x480", "480x832"),
    *("1920x1080", "1080x1920", "1024x1024"),
)

# How much a wrong shape weighs against a wrong area, both as logarithms of a ratio: enough that a clip for a wide
# screen stays wide on a model that is far too small for it.
_SHAPE_WEIGHT = 10.0
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_RESOLUTION = re.compile(r"([1-9][0-9]{1,4})p")
_ASPECT_RATIO = re.compile(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        return self.width * self.height


def written_size(text: str) -> str:
    """A size as this API writes it: clients send spaces around it, and a large X."""
    return text.strip(" ").lower()


def parse_size(text: str) -> Size | None:
    """None for what is not WIDTHxHEIGHT in decimal digits."""
    match = _SIZE.fullmatch(text)
    return Size(int(match[1]), int(match[2])) if match else None


def parse_resolution(text: str) -> int | None:
    """The shorter side of "480p" in pixels; None for what is none."""
    match = _RESOLUTION.fullmatch(text)
    return int(match[1]) if match else None


def parse_aspect_ratio(text: str) -> float | None:
    """Width over height of "16:9"; None for what is none."""
    match = _ASPECT_RATIO.fullmatch(text)
    return int(match[1]) / int(match[2]) if match else None


def wrong_side(size: Size, model: ModelSettings) -> str | None:
    """The side that the model cannot make, as "width 1280"; None if it can make both."""
    for what, side, bounds in (("width", size.width, model.width), ("height", size.height, model.height)):
        if not is_side(side) or not bounds.minimum <= side <= bounds.maximum:
            return f"{what} {side}"
    return None


def default_size(model: ModelSettings) -> Size:
    return Size(model.width.default, model.height.default)


def nearest_size(width: float, height: float, model: ModelSettings, num_frames: int) -> Size | None:
    """The size nearest to these sides, in shape before area, that the model makes with so many frames.

    Returns:
        None if a clip of so many frames is too large at any size.
    """

    def distance(size: Size) -> float:
        shape = math.log(size.width / size.height * height / width)
        area = math.log(size.pixels / width / height)
        return _SHAPE_WEIGHT * abs(shape) + abs(area)

    possible = [
        size
        for side in range(model.width.minimum, model.width.maximum + 1, PIXELS_PER_TOKEN)
        for other in range(model.height.minimum, model.height.maximum + 1, PIXELS_PER_TOKEN)
        if model.fits_clip((size := Size(side, other)).pixels, num_frames)
    ]
    return min(possible, key=distance, default=None)


def shaped_sides(aspect_ratio: float | None, shorter: int | None, model: ModelSettings) -> tuple[float, float]:
    """Width and height: without a shorter side of the default area, without an aspect ratio of the default shape."""
    default = default_size(model)
    ratio = aspect_ratio or default.width / default.height
    if shorter is None:
        return math.sqrt(default.pixels * ratio), math.sqrt(default.pixels / ratio)
    return (shorter * ratio, shorter) if ratio >= 1 else (shorter, shorter / ratio)
