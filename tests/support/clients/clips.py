"""What a client must get: the mp4 that its video's answer tells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.clip_reader import probe, read_frames


def assert_as_told(video: Mapping[str, Any], path: Path) -> None:
    """The file has the size, the frames, the rate and the length of the completed Video."""
    assert video["status"] == "completed", video
    stream = probe(path)
    seen = (f"{stream.width}x{stream.height}", len(read_frames(path)), stream.fps)
    assert seen == (video["size"], video["num_frames"], video["fps"])
    assert abs(video["num_frames"] / video["fps"] - video["duration_s"]) < 1e-3
    # Containers tell their length to the hundredth.
    assert abs(stream.duration_s - video["duration_s"]) < 0.011
