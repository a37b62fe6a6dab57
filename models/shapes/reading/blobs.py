"""Where something stands out from the ground: blobs, connected in space and time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Blob:
    """The voxels of one blob, each field [N]."""

    frame: Ints
    row: Ints
    column: Ints

    @property
    def frames_seen(self) -> Ints:
        """The numbers of the frames that it is in, ascending."""
        return np.unique(self.frame)

    @property
    def area(self) -> float:
        """Pixels of a frame that it is in, on average."""
        return len(self.frame) / len(self.frames_seen)


def find_blobs(mask: Mask, edge: int, least_area: float) -> list[Blob]:
    """The connected blobs of a mask [F, H, W] without their edge, the largest first.

    A figure overlaps itself from frame to frame, so a blob is a figure all through the clip. Without their edge, two
    that touch are two.

    Args:
        edge: pixels.
        least_area: blobs with fewer pixels than this in a frame are noise.
    """
    inner = mask
    for _ in range(edge):
        inner = erode(inner)
    voxels = np.nonzero(inner)
    labels = connected(inner)
    blobs = [Blob(*(axis[labels == label] for axis in voxels)) for label in np.unique(labels)]
    return sorted((blob for blob in blobs if blob.area >= least_area), key=lambda blob: -len(blob.frame))


def erode(mask: Mask) -> Mask:
    """Take one pixel off each edge within a frame; what lies beyond the picture counts as inside."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    rows = padded[:, :-2] & padded[:, 1:-1] & padded[:, 2:]
    return rows[:, :, :-2] & rows[:, :, 1:-1] & rows[:, :, 2:]


def connected(mask: Mask) -> Ints:
    """A label for each true voxel, in the order of `np.nonzero`: equal where a path through sides leads over.

    Each voxel points to its smallest neighbour; pointers are then followed until nothing moves, which takes about as
    many rounds as the longest path has doublings.
    """
    labels = np.arange(np.count_nonzero(mask))
    first, second = _neighbours(mask)
    while True:
        least = np.minimum(labels[first], labels[second])
        if np.array_equal(least, np.maximum(labels[first], labels[second])):
            return labels
        for end in (first, second):
            np.minimum.at(labels, labels[end], least)
        while not np.array_equal(labels, labels[labels]):
            labels = labels[labels]


def _neighbours(mask: Mask) -> tuple[Ints, Ints]:
    """The pairs of true voxels that share a side, as positions among the true ones."""
    number = np.cumsum(mask).reshape(mask.shape) - 1
    firsts = []
    seconds = []
    for axis in range(mask.ndim):
        size = mask.shape[axis]
        both = np.take(mask, range(size - 1), axis) & np.take(mask, range(1, size), axis)
        firsts.append(np.take(number, range(size - 1), axis)[both])
        seconds.append(np.take(number, range(1, size), axis)[both])
    return np.concatenate(firsts), np.concatenate(seconds)
