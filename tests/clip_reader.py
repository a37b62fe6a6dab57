"""Reads colour, direction and stream facts back from an mp4 file, by ffmpeg alone."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

COLOURS = {"red": (255, 26, 26), "green": (26, 230, 26), "blue": (38, 64, 255), "yellow": (255, 230, 26)}
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Stream:
    """What ffmpeg says of the first video stream."""

    codec: str
    pixel_format: str
    width: int
    height: int
    fps: float


def probe(path: Path) -> Stream:
    said = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)], capture_output=True, text=True
    ).stderr
    line = next(line for line in said.splitlines() if "Video:" in line)
    codec = re.search(r"Video: (\w+)", line)
    pixel_format = re.search(r", (yuv\w+)", line)
    size = re.search(r", (\d+)x(\d+)", line)
    fps = re.search(r"([\d.]+) fps", line)
    assert codec and pixel_format and size and fps, line
    return Stream(codec[1], pixel_format[1], int(size[1]), int(size[2]), float(fps[1]))


def read_frames(path: Path) -> Frames:
    """All frames, uint8 [F, H, W, 3] RGB."""
    stream = probe(path)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = subprocess.run([*command, "-fps_mode", "passthrough", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, stream.height, stream.width, 3)


def is_faststart(path: Path) -> bool:
    """Whether the index (moov) stands before the media data (mdat), so that a player starts at once."""
    data = path.read_bytes()
    return 0 <= data.find(b"moov") < data.find(b"mdat")


def colour_and_direction(frames: Frames) -> tuple[str, str]:
    """The colour of the one saturated shape, and where it moved between the first and the last frames."""
    values = frames.astype(np.float64)
    mask = values.max(-1) - values.min(-1) > 0.3 * 255
    assert mask.sum((1, 2)).min() >= 15, "some frame shows no coloured shape"
    mean = values[mask].mean(0)
    colour = min(COLOURS, key=lambda name: float(((np.array(COLOURS[name]) - mean) ** 2).sum()))
    ys, xs = np.mgrid[: frames.shape[1], : frames.shape[2]]
    area = mask.sum((1, 2))
    cx, cy = (mask * xs).sum((1, 2)) / area, (mask * ys).sum((1, 2)) / area
    dx, dy = cx[-3:].mean() - cx[:3].mean(), cy[-3:].mean() - cy[:3].mean()
    if abs(dx) > abs(dy):
        return colour, "right" if dx > 0 else "left"
    return colour, "down" if dy > 0 else "up"
