"""Frames to an mp4 that every browser plays, through the ffmpeg binary; the same frames give the same bytes."""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Literal

import imageio_ffmpeg
from PIL import Image
from torch import Tensor

from deployments.errors import TransientError

Codec = Literal["x264", "nvenc"]
"""Who compresses: x264 on the CPU, or the encoder engine of an NVIDIA GPU."""

CODECS: Mapping[Codec, Sequence[str]] = {
    # crf: 0 is lossless, 51 the worst.
    "x264": ("-c:v", "libx264", "-preset", "veryfast", "-crf", "17"),
    "nvenc": ("-c:v", "h264_nvenc", "-preset", "p5", "-rc", "constqp", "-qp", "18"),
}
POSTER_QUALITY = 85  # WebP's, 0 to 100
STDERR_BYTES = 2000  # of ffmpeg's last words, in an error
FINISH_TIMEOUT_S = 300.0  # from the last frame to the whole file

# The frames are full-range RGB; players take untagged H.264 for one of two matrices, so convert and say which.
_TO_BT709 = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p"
_TAGS = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
_EXACT = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]


class Mp4Writer:
    """Writes one mp4: H.264, yuv420p, BT.709, index in front (faststart), no sound.

    Call `finish` for a whole file or `kill` to give up; one of them must be called.

    Args:
        path: of the file.
        width: of the frames, pixels.
        height: of the frames, pixels.
        fps: frames a second.
        codec: see `Codec`.
    """

    def __init__(self, path: Path, width: int, height: int, fps: int, codec: Codec = "x264") -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by finish and kill)
        self._process = subprocess.Popen(
            command(path, width, height, fps, codec),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )

    @property
    def is_running(self) -> bool:
        """Whether ffmpeg is still there."""
        return self._process.poll() is None

    def write(self, frames: Tensor) -> None:
        """Append frames.

        Args:
            frames: [t, H, W, 3] uint8 RGB, contiguous, on the CPU.

        Raises:
            TransientError: `mp4_failed`, with what ffmpeg said as its detail.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frames.numpy().data)
        except OSError as error:
            raise self._failed() from error

    def finish(self) -> None:
        """Write what is left and wait for the file to be whole.

        Raises:
            TransientError: `mp4_failed`, with what ffmpeg said as its detail.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            code = self._process.wait(FINISH_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failed() from error
        if code != 0:
            raise self._failed()
        self._stderr.close()

    def kill(self) -> None:
        """End ffmpeg now, also after an error; leaves whatever it had written."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):  # nobody reads the bytes that are still buffered
                self._process.stdin.close()
        self._stderr.close()

    def _failed(self) -> TransientError:
        self._process.kill()
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read()[-STDERR_BYTES:].decode(errors="replace").strip()
        return TransientError(
            "mp4_failed", f"the mp4 could not be written (code {code})", said or "ffmpeg said nothing"
        )


def command(path: Path, width: int, height: int, fps: int, codec: Codec = "x264") -> list[str]:
    """ffmpeg's command line; raw RGB frames come in by its standard input."""
    return [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-hide_banner", "-loglevel", "error", "-nostdin", "-y"),
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}"),
        *("-framerate", str(fps), "-i", "pipe:0"),
        *("-vf", _TO_BT709),
        *CODECS[codec],
        *_TAGS,
        *_EXACT,
        *("-movflags", "+faststart", "-f", "mp4", str(path)),
    ]


def poster(frame: Tensor) -> bytes:
    """A WebP image of one frame, [H, W, 3] uint8 RGB on the CPU."""
    file = BytesIO()
    Image.fromarray(frame.numpy()).save(file, format="WEBP", quality=POSTER_QUALITY)
    return file.getvalue()
