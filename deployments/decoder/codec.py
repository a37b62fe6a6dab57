"""Which encoder a replica writes its videos with: one that has encoded a frame here."""

import logging
from pathlib import Path

import torch

from deployments.decoder.mp4_encoder import Codec, Mp4Writer
from deployments.errors import PermanentError, TransientError
from deployments.settings import EncoderName
from deployments.storage.scratch import scratch_folder

_logger = logging.getLogger("ray.serve")


def choose_codec(wanted: EncoderName, device: torch.device, width: int, height: int) -> Codec:
    """The codec of the setting `decoder.encoder` on this device; what `auto` became is logged.

    That ffmpeg lists h264_nvenc says nothing: it does so where the GPU has no encoder engine. So a frame is encoded.

    Args:
        wanted: the setting.
        device: of the replica.
        width: of the smallest video in pixels; an engine refuses frames that are too small for it.
        height: as `width`.

    Raises:
        PermanentError: `encoder_unavailable`: nvenc is wanted and has encoded no frame.
    """
    if wanted == "x264":
        return "x264"
    why_not = _nvenc_problem(device, width, height)
    if why_not is None:
        _logger.info("videos are encoded by nvenc")
        return "nvenc"
    if wanted == "nvenc":
        raise PermanentError(
            "encoder_unavailable",
            f"decoder.encoder is nvenc, and it cannot encode {width}x{height} on {device}; set it to x264 or auto",
            why_not,
        )
    _logger.info("videos are encoded by x264: %s", why_not)
    return "x264"


def _nvenc_problem(device: torch.device, width: int, height: int) -> str | None:
    """Why nvenc cannot be used; None when it has encoded a frame."""
    if device.type != "cuda":
        return f"the replica runs on {device.type}, and nvenc is part of a GPU"
    with scratch_folder("mochi-codec-") as folder:
        return encoding_problem("nvenc", folder / "probe.mp4", width, height)


def encoding_problem(codec: Codec, path: Path, width: int, height: int) -> str | None:
    """Why this codec has not encoded a grey frame into `path`, in ffmpeg's words; None when it has."""
    writer = Mp4Writer(path, width, height, fps=24, codec=codec)
    try:
        writer.write(torch.full((1, height, width, 3), 128, dtype=torch.uint8))
        writer.finish()
    except TransientError as error:
        writer.kill()
        return error.detail
    return None
