"""Drawing a scene as a clip: flat colour, soft edges, no randomness."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.shapes.scenes.scene import BACKGROUNDS, COLOURS, Scene, Track

# Logistic slope of an edge for each pixel of distance: an edge is about three pixels wide.
EDGE_SLOPE = 1.6
_STAR_OUTER, _STAR_INNER = 1.4, 0.66


def draw_clip(scene: Scene, tracks: Sequence[Track], height: int, width: int, num_frames: int) -> Tensor:
    """The clip of a scene, [3, num_frames, height, width] fp32 in -1 to 1."""
    side = min(height, width)
    clip = _paint(BACKGROUNDS[scene.background]).expand(3, num_frames, height, width)
    for figure, track in zip(scene.figures, tracks, strict=True):
        inside = figure_mask(figure.shape, track, height, width, num_frames, side)
        clip = clip + inside * (_paint(COLOURS[figure.colour]) - clip)
    return clip * 2 - 1


def figure_mask(shape: str, track: Track, height: int, width: int, num_frames: int, side: int) -> Tensor:
    """How much of each pixel a figure covers, [num_frames, height, width] fp32 in 0 to 1."""
    frames = torch.arange(num_frames, dtype=torch.float32)
    x = torch.arange(width) + 0.5 - side * (track.start[0] + frames[:, None] * track.step[0])
    y = torch.arange(height) + 0.5 - side * (track.start[1] + frames[:, None] * track.step[1])
    return shape_mask(shape, x[:, None, :], y[:, :, None], track.radius * side)


def shape_mask(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Coverage of a shape centred at the origin; x to the right and y down, in pixels, broadcast."""
    return torch.sigmoid(EDGE_SLOPE * DISTANCES[shape](x, y, radius))


def _circle(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return radius - torch.hypot(x, y)


def _square(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """As large in area as the circle."""
    return math.sqrt(math.pi) / 2 * radius - torch.maximum(x.abs(), y.abs())


def _triangle(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Equilateral, on its base, the centroid at the origin."""
    side = (y + 1.4 * radius) / 2 - x.abs() * math.sqrt(3) / 2
    return torch.minimum(0.7 * radius - y, side)


def _star(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Five points, one of them up: the plane is folded onto a tenth of it, where one line is the whole edge."""
    fifth = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + fifth / 2, fifth) - fifth / 2
    distance = torch.hypot(x, y)
    along, across = distance * angle.cos(), distance * angle.abs().sin()
    tip = _STAR_OUTER * radius
    notch = (_STAR_INNER * radius * math.cos(fifth / 2), _STAR_INNER * radius * math.sin(fifth / 2))
    normal = (notch[1], tip - notch[0])
    return ((tip - along) * normal[0] - across * normal[1]) / math.hypot(*normal)


# Signed distance from the edge in pixels, positive inside.
DISTANCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
}


def _paint(colour: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1, 1)
