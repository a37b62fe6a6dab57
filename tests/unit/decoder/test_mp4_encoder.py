"""The mp4 as a player sees it, decoded again by ffmpeg."""

import re
import subprocess
from io import BytesIO
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from PIL import Image
from torch import Tensor

from deployments.decoder.mp4_encoder import Mp4Writer, command, poster
from deployments.errors import TransientError

WIDTH, HEIGHT, FRAMES, FPS = 64, 48, 13, 24


def moving_square() -> Tensor:
    """[13, 48, 64, 3] uint8: a red square that goes right over blue."""
    frames = torch.tensor([20, 40, 200], dtype=torch.uint8).expand(FRAMES, HEIGHT, WIDTH, 3).clone()
    for index in range(FRAMES):
        frames[index, 16:32, 2 * index : 2 * index + 16] = torch.tensor([220, 30, 30], dtype=torch.uint8)
    return frames


def write(path: Path, frames: Tensor) -> bytes:
    writer = Mp4Writer(path, WIDTH, HEIGHT, FPS)
    for start in range(0, len(frames), 5):
        writer.write(frames[start : start + 5].contiguous())
    writer.finish()
    return path.read_bytes()


def ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *arguments], capture_output=True)


def decoded(path: Path) -> Tensor:
    """The frames as a player that heeds the tags shows them."""
    to_rgb = ("-vf", "scale=in_color_matrix=auto:out_range=pc", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    raw = ffmpeg("-i", str(path), *to_rgb).stdout
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, HEIGHT, WIDTH, 3)


def test_every_frame_comes_back_in_its_colours(tmp_path: Path) -> None:
    frames = moving_square()
    write(tmp_path / "v.mp4", frames)
    seen = decoded(tmp_path / "v.mp4")
    assert seen.shape == frames.shape
    error = (seen.float() - frames.float()).abs()
    assert float(error.mean()) < 3
    corners = (seen[:, :8, :8].float() - frames[:, :8, :8].float()).abs()
    assert float(corners.max()) <= 4


def test_it_is_h264_yuv420p_tagged_bt709(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", moving_square())
    said = ffmpeg("-i", str(tmp_path / "v.mp4")).stderr.decode()
    assert re.search(r"Video: h264 .*yuv420p\(tv, bt709", said), said
    assert f"{WIDTH}x{HEIGHT}" in said and f"{FPS} fps" in said
    assert "Audio" not in said


def test_the_index_is_in_front(tmp_path: Path) -> None:
    data = write(tmp_path / "v.mp4", moving_square())
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    frames = moving_square()
    assert write(tmp_path / "a.mp4", frames) == write(tmp_path / "b.mp4", frames)
    assert write(tmp_path / "c.mp4", frames.flip(0)) != write(tmp_path / "a.mp4", frames)


def test_what_ffmpeg_says_is_in_the_error(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "no" / "such" / "folder.mp4", WIDTH, HEIGHT, FPS)
    with pytest.raises(TransientError, match="No such file or directory") as caught:
        while True:
            writer.write(moving_square())
    writer.kill()
    assert caught.value.code == "mp4_failed"


def test_an_error_at_the_end_is_raised_too(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "no" / "folder.mp4", WIDTH, HEIGHT, FPS)
    with pytest.raises(TransientError, match="No such file or directory"):
        writer.finish()
    writer.kill()


def test_kill_ends_ffmpeg(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "v.mp4", WIDTH, HEIGHT, FPS)
    writer.write(moving_square())
    assert writer.is_running
    writer.kill()
    assert not writer.is_running
    writer.kill()


def test_the_command_names_size_and_rate() -> None:
    line = " ".join(command(Path("v.mp4"), 848, 480, 30))
    assert "-video_size 848x480 -framerate 30" in line
    assert line.endswith("v.mp4")


def test_the_poster_is_a_webp_of_the_frame() -> None:
    image = Image.open(BytesIO(poster(moving_square()[0])))
    assert image.format == "WEBP" and image.size == (WIDTH, HEIGHT)
    red, _, blue = image.convert("RGB").getpixel((8, 24))  # type: ignore[misc]
    assert red > 150 > blue
