"""One picture with small frames of the whole clip, for a player's seek bar: collected while frames are decoded.

The clip is cut into columns x rows stretches of one length; each cell shows the middle of its stretch, in rows from
the top left. A player needs nothing but the clip's number of frames: `grid` gives columns and rows, a cell is the
picture's width / columns by its height / rows, and the place p of the clip, 0 <= p < 1, is cell floor(p * cells).
"""

from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

GRIDS = ((4, 4), (4, 3), (3, 3), (3, 2), (2, 2), (2, 1), (1, 1))  # columns, rows
LONG_SIDE = 320  # pixels of a cell
QUALITY = 75  # WebP's, 0 to 100


def grid(num_frames: int) -> tuple[int, int]:
    """Columns and rows: the largest of GRIDS that the clip fills, 4 x 4 from 16 frames on.

    Raises:
        ValueError: no frames.
    """
    if num_frames < 1:
        raise ValueError(f"a spritesheet needs at least one frame, not {num_frames}")
    return next((columns, rows) for columns, rows in GRIDS if columns * rows <= num_frames)


def shown_frames(num_frames: int) -> list[int]:
    """Which frame each cell shows, counted from 0: of stretch k of n, the frame at (k + 1/2) / n of the clip."""
    columns, rows = grid(num_frames)
    cells = columns * rows
    return [(2 * cell + 1) * num_frames // (2 * cells) for cell in range(cells)]


def cell_size(width: int, height: int) -> tuple[int, int]:
    """Width and height in pixels of a cell: the frame's, with the longer side at most LONG_SIDE."""
    scale = min(1.0, LONG_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


class Spritesheet:
    """The picture of a clip of `num_frames` frames of width x height pixels; holds the small frames alone."""

    def __init__(self, num_frames: int, width: int, height: int) -> None:
        self._columns, rows = grid(num_frames)
        self._cells = {frame: cell for cell, frame in enumerate(shown_frames(num_frames))}
        self._cell_size = cell_size(width, height)
        self._sheet = Image.new("RGB", (self._columns * self._cell_size[0], rows * self._cell_size[1]))
        self._num_frames = num_frames
        self._added = 0  # frames so far

    def add(self, frames: "Tensor") -> None:
        """Add the next frames of the clip, [t, height, width, 3] uint8 RGB on the CPU."""
        for index, frame in enumerate(frames, self._added):
            if index in self._cells:
                self._paste(frame, self._cells[index])
        self._added += len(frames)

    def _paste(self, frame: "Tensor", cell: int) -> None:
        row, column = divmod(cell, self._columns)
        small = Image.fromarray(frame.numpy()).resize(self._cell_size, Image.Resampling.LANCZOS)
        self._sheet.paste(small, (column * self._cell_size[0], row * self._cell_size[1]))

    def webp(self) -> bytes:
        """The finished picture, the same bytes for the same frames.

        Raises:
            ValueError: frames are missing, or there were too many.
        """
        if self._added != self._num_frames:
            raise ValueError(f"the clip has {self._num_frames} frames; {self._added} were added")
        file = BytesIO()
        self._sheet.save(file, format="WEBP", quality=QUALITY)
        return file.getvalue()
