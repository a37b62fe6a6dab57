"""Whether a clip is the undisturbed one."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.clip_reader import Frames, read_frames

# In levels of 255. Latents of another batch differ by 1e-5 of their size, which turns a rounding of a pixel here and
# there, and with it what the encoder decides around it; a clip of another seed differs by tens of levels.
MEAN_LEVELS = 0.5
MOST_LEVELS = 24


def difference(reference: bytes, clip: bytes, exact: bool) -> str | None:
    """How the clip differs from its reference, None if it is the same.

    exact: each byte counts; otherwise the decoded frames, within MEAN_LEVELS on average and MOST_LEVELS anywhere.
    """
    if clip == reference:
        return None
    if exact:
        return f"{len(clip)} bytes are not the {len(reference)} of the reference"
    return frame_difference(frames_of(reference), frames_of(clip))


def frame_difference(reference: Frames, frames: Frames) -> str | None:
    """How the frames (uint8 [F, H, W, 3]) differ beyond the tolerance, None if they do not."""
    if frames.shape != reference.shape:
        return f"frames of shape {frames.shape} instead of {reference.shape}"
    apart = np.abs(frames.astype(np.int16) - reference.astype(np.int16))
    mean, most = float(apart.mean()), int(apart.max())
    if mean <= MEAN_LEVELS and most <= MOST_LEVELS:
        return None
    return f"pixels differ by {mean:.3f} levels on average and {most} at most"


def frames_of(clip: bytes) -> Frames:
    with TemporaryDirectory(prefix="clip") as folder:
        path = Path(folder) / "clip.mp4"
        path.write_bytes(clip)
        return read_frames(path)
