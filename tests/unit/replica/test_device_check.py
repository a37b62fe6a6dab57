"""What is said of a GPU that was assigned and does not work."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deployments.errors import DeviceBrokenError
from deployments.replica.device_check import (
    Installation,
    advice,
    check_arithmetic,
    driver_version,
    gpu_problem,
    installation,
)

PROPRIETARY = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)
GCC version:  gcc version 11.4.0
"""


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, "550.54.14"), (OPEN, "580.65.06"), ("", None)])
def test_the_driver_tells_its_version(tmp_path: Path, text: str, version: str | None) -> None:
    file = tmp_path / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert driver_version(tmp_path) == version


def test_where_there_is_no_driver_there_is_no_version(tmp_path: Path) -> None:
    assert driver_version(tmp_path) is None
    assert installation(tmp_path, {}) == Installation(torch.__version__, torch.version.cuda, None)


def test_what_the_process_is_shown_is_told(tmp_path: Path) -> None:
    for bus in ("0000:17:00.0", "0000:65:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    found = installation(tmp_path, {"CUDA_VISIBLE_DEVICES": "1"})
    assert (found.gpus, found.visible) == (2, "1")


def test_a_device_that_works_has_no_problem() -> None:
    check_arithmetic(torch.device("cpu"))
    assert gpu_problem(torch.device("cpu")) is None


def test_a_device_that_is_not_there_has_one_in_one_line() -> None:
    problem = gpu_problem(torch.device("cuda:99"))
    assert problem is not None and problem.strip() and "\n" not in problem


def test_a_device_that_multiplies_wrongly_is_broken() -> None:
    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = left @ right
        product[200, 3] += 1
        return product

    with pytest.raises(DeviceBrokenError, match="cpu multiplies two matrices of whole numbers wrongly"):
        check_arithmetic(torch.device("cpu"), multiply)


def shown(visible: str) -> Installation:
    """A machine of two GPUs on which all is well but what the process is shown of it."""
    return Installation("2.11.0+cu130", "13.0", "580.65.06", 2, visible)


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        (Installation("2.11.0+cu130", "13.0", "550.54.14"), ["580 or newer", "has 550.54.14", "update the driver"]),
        (Installation("2.11.0+cu128", "12.8", "470.82.01"), ["525 or newer", "has 470.82.01"]),
        (Installation("2.11.0+cu130", "13.0", None), ["580 or newer", "none is loaded", "NVIDIA runtime"]),
        (Installation("2.13.0+cpu", None, "580.65.06"), ["built without CUDA", "install a CUDA build"]),
        (Installation("2.11.0+cu130", "13.0", "580.65.06"), ["driver 580.65.06 fits", "nvidia-smi", "Xid"]),
        (Installation("3.0.0+cu200", "20.0", "900.10"), ["driver 900.10 fits"]),
        (shown(""), ["CUDA_VISIBLE_DEVICES is ''", "there are 2, from 0 on", "unset it"]),
        (shown("-1"), ["CUDA_VISIBLE_DEVICES is '-1'", "names no GPU"]),
        (shown("2,0"), ["CUDA_VISIBLE_DEVICES is '2,0'", "names no GPU"]),
        (shown("none"), ["CUDA_VISIBLE_DEVICES is 'none'", "names no GPU"]),
        (shown("1,2"), ["driver 580.65.06 fits", "CUDA_VISIBLE_DEVICES is '1,2'", "Xid"]),
        (shown("GPU-5ebe9f43"), ["driver 580.65.06 fits", "CUDA_VISIBLE_DEVICES is 'GPU-5ebe9f43'"]),
        (replace(shown("7"), gpus=0), ["driver 580.65.06 fits", "CUDA_VISIBLE_DEVICES is '7'"]),
    ],
)
def test_the_advice_fits_what_is_installed(found: Installation, parts: list[str]) -> None:
    said = advice(found)
    assert all(part in said for part in parts), said
    assert "\n" not in said
