"""Reads frames, stream facts, colour and direction back from an mp4 file."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from models.shapes.evaluation.mp4 import read_mp4 as read_frames
from models.shapes.reading.reader import read_clip
from models.shapes.reading.reading import Frames

__all__ = ["Frames", "Stream", "colour_and_direction", "colours", "is_faststart", "probe", "read_frames"]


@dataclass(frozen=True)
class Stream:
    """What ffmpeg says of the first video stream."""

    codec: str
    pixel_format: str
    width: int
    height: int
    fps: float
    duration_s: float  # of the file, to the hundredth


def probe(path: Path) -> Stream:
    said = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)], capture_output=True, text=True
    ).stderr
    line = next(line for line in said.splitlines() if "Video:" in line)
    codec = re.search(r"Video: (\w+)", line)
    pixel_format = re.search(r", (yuv\w+)", line)
    size = re.search(r", (\d+)x(\d+)", line)
    fps = re.search(r"([\d.]+) fps", line)
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said)
    assert codec and pixel_format and size and fps and length, said
    duration_s = 3600 * int(length[1]) + 60 * int(length[2]) + float(length[3])
    return Stream(codec[1], pixel_format[1], int(size[1]), int(size[2]), float(fps[1]), duration_s)


def is_faststart(path: Path) -> bool:
    """Whether the index (moov) stands before the media data (mdat), so that a player starts at once."""
    data = path.read_bytes()
    return 0 <= data.find(b"moov") < data.find(b"mdat")


def colours(frames: Frames) -> set[str]:
    """Of all figures of a clip."""
    return {figure.colour for figure in read_clip(frames).figures}


def colour_and_direction(frames: Frames) -> tuple[str, str]:
    """Of the one figure of a clip, which was made with a seed: of all seeds a few in a hundred move another way."""
    reading = read_clip(frames)
    assert len(reading.figures) == 1, f"{len(reading.figures)} figures are seen; {reading.remarks}"
    return reading.figures[0].colour, reading.figures[0].direction
