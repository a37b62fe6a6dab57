"""Clips to mp4 by the server's own encoder and back by ffmpeg."""

import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch

from deployments.decoder.mp4_encoder import Mp4Writer
from models.shapes.reading.reading import Frames


def through_mp4(frames: Frames, fps: int = 24) -> Frames:
    """A clip [F, H, W, 3] as a viewer of its mp4 sees it."""
    with tempfile.TemporaryDirectory(prefix="shapes-") as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, frames, fps)
        return read_mp4(path)


def write_mp4(path: Path, frames: Frames, fps: int = 24) -> None:
    """Raises TransientError: `mp4_failed`, with what ffmpeg said."""
    _, height, width, _ = frames.shape
    writer = Mp4Writer(path, width, height, fps)
    try:
        writer.write(torch.from_numpy(np.ascontiguousarray(frames)))
    except BaseException:
        writer.kill()
        raise
    writer.finish()


def read_mp4(path: Path) -> Frames:
    """All frames, [F, H, W, 3] RGB."""
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])
