"""Which encoder a replica writes with: only one that has encoded a frame here."""

from pathlib import Path

import pytest
import torch

from deployments.decoder.codec import choose_codec, encoding_problem
from deployments.errors import PermanentError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_x264_by_default_and_nvenc_never_on_a_cpu() -> None:
    assert choose_codec("x264", CUDA, 64, 64) == "x264"
    assert choose_codec("auto", CPU, 64, 64) == "x264"
    with pytest.raises(PermanentError, match="decoder.encoder is nvenc.*x264 or auto") as caught:
        choose_codec("nvenc", CPU, 64, 64)
    assert caught.value.code == "encoder_unavailable" and "cpu" in caught.value.detail


def test_a_probe_is_a_whole_file_or_what_ffmpeg_said(tmp_path: Path) -> None:
    assert encoding_problem("x264", tmp_path / "whole.mp4", 32, 16) is None
    assert (tmp_path / "whole.mp4").stat().st_size > 0
    assert encoding_problem("x264", tmp_path / "no folder" / "v.mp4", 32, 16)


def test_nvenc_is_chosen_where_it_has_encoded_a_frame(tmp_path: Path) -> None:
    """Whether it has is up to the machine that runs this; mostly it has not, though ffmpeg lists it."""
    problem = encoding_problem("nvenc", tmp_path / "v.mp4", 256, 256)
    assert choose_codec("auto", CUDA, 256, 256) == ("nvenc" if problem is None else "x264")
    if problem is not None:
        with pytest.raises(PermanentError, match="256x256"):
            choose_codec("nvenc", CUDA, 256, 256)
