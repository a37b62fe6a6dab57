"""The shape and the way of one figure: each shape is drawn over the clip, moved and resized until it fits best."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.shapes.reading.blobs import Blob, Ints
from models.shapes.scenes.draw import shape_mask
from models.shapes.scenes.scene import SHAPES

# Frames that a fit looks at: enough to average noise out, few enough to take milliseconds.
FIT_FRAMES = 12
# Half of the side of the square that is looked at: the farthest corner of a shape (1.4 radii of the circle of equal
# area, at most 1.1 times that for a triangle), then room for the blur of an edge.
WINDOW_RADII = 1.6
WINDOW_MARGIN = 4
# Gauss-Newton on so smooth a problem, started within a pixel or two, is at rest after four or five rounds.
ROUNDS = 6
# Pixels: small against an edge (three pixels), large against the rounding of fp32.
DIFFERENCE = 0.05
# Pixels of one round at most, so that a bad start does not throw a shape out of its window.
LONGEST_STEP = 4.0
_UNITS = torch.eye(5, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Line:
    """A straight way, (x, y) in pixels."""

    start: tuple[float, float]  # the centre in frame 0
    step: tuple[float, float]  # from each frame to the next

    def at(self, frames: Tensor) -> Tensor:
        """Centres [n, 2] in the frames [n]."""
        return torch.tensor(self.start) + frames[:, None] * torch.tensor(self.step)


@dataclass(frozen=True, slots=True)
class Fit:
    """A shape on its way."""

    shape: str
    radius: float  # pixels
    line: Line
    error: float  # mean square of the difference to the clip, in coverage


def rough_line(blob: Blob) -> Line:
    """The least-squares line through the centres of a blob."""
    frames = blob.frames_seen
    count = np.bincount(blob.frame)[frames]
    centres = [np.bincount(blob.frame, axis + 0.5)[frames] / count for axis in (blob.column, blob.row)]
    steps = [0.0, 0.0] if len(frames) < 2 else [float(np.polyfit(frames, centre, 1)[0]) for centre in centres]
    starts = [float(centre.mean() - step * frames.mean()) for centre, step in zip(centres, steps, strict=True)]
    return Line((starts[0], starts[1]), (steps[0], steps[1]))


def best_fit(coverage: Tensor, blob: Blob, edge: int) -> Fit:
    """The shape that explains a blob best.

    Args:
        coverage: [F, H, W] fp32, how much of a pixel is of the figure's colour; 0 to 1.
        edge: pixels that the blob lacks all around.
    """
    radius = float(np.sqrt(blob.area / np.pi)) + edge
    line = rough_line(blob)
    window = _Window(coverage, blob.frames_seen, line, radius)
    return min((window.fit(shape, radius, line) for shape in SHAPES), key=lambda fit: fit.error)


class _Window:
    """The squares around a figure in some frames, and how well a shape fills them."""

    def __init__(self, coverage: Tensor, seen: Ints, line: Line, radius: float) -> None:
        chosen = np.linspace(0, len(seen) - 1, min(FIT_FRAMES, len(seen))).round().astype(int)
        self._frames = torch.from_numpy(seen[chosen])
        self._middle = float(self._frames.float().mean())
        self._span = max(1.0, float(self._frames.max() - self._frames.min()))
        half = int(WINDOW_RADII * radius) + WINDOW_MARGIN
        reach = torch.arange(-half, half + 1)
        at_pixel = line.at(self._frames.float()).floor().long()
        columns = at_pixel[:, :1] + reach
        rows = at_pixel[:, 1:] + reach
        self._x = (columns + 0.5)[:, None, :]
        self._y = (rows + 0.5)[:, :, None]
        height, width = coverage.shape[1:]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        self._weight = inside.float()
        at = self._frames[:, None, None], rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
        self._coverage = coverage[at]

    def fit(self, shape: str, radius: float, line: Line) -> Fit:
        """The best radius and way of one shape, by Gauss-Newton with numeric derivatives.

        The unknowns are the radius, the centre in the middle of the frames and the way between the first and the
        last of them, all in pixels.
        """
        middle = [s + self._middle * v for s, v in zip(line.start, line.step, strict=True)]
        found = torch.tensor([radius, *middle, *(self._span * v for v in line.step)], dtype=torch.float64)
        best = found
        error = float("inf")
        for _ in range(ROUNDS):
            rest = self._rest(shape, found)
            if float(rest.square().mean()) < error:
                best = found
                error = float(rest.square().mean())
            slopes = [(self._rest(shape, found + DIFFERENCE * unit) - rest) / DIFFERENCE for unit in _UNITS]
            slope = torch.stack(slopes, dim=1)
            # A trace of damping: of a figure seen in one frame the way is unknown, and stays what it was.
            step = torch.linalg.solve(slope.T @ slope + 1e-3 * _UNITS, slope.T @ rest)
            found = found - step.clamp(-LONGEST_STEP, LONGEST_STEP)
            found[0] = found[0].clamp(min=1.0)
        return Fit(shape, float(best[0]), self._line(best), error)

    def _rest(self, shape: str, unknowns: Tensor) -> Tensor:
        """What is drawn less what is seen, [pixels] fp64."""
        centre = self._line(unknowns).at(self._frames.float())[:, :, None, None]
        drawn = shape_mask(shape, self._x - centre[:, 0], self._y - centre[:, 1], float(unknowns[0]))
        return ((drawn - self._coverage) * self._weight).flatten().double()

    def _line(self, unknowns: Tensor) -> Line:
        x, y, way_x, way_y = unknowns[1:].tolist()
        step = way_x / self._span, way_y / self._span
        return Line((x - self._middle * step[0], y - self._middle * step[1]), step)
