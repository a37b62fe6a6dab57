"""Whether a GPU that was assigned works at all, and the one line that says why not and what to do."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deployments.errors import DeviceBrokenError

ROOT = Path("/")
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
SIDE = 256  # of the matrices of the check

# Oldest driver for each major version of CUDA, by NVIDIA's guide "CUDA Compatibility" (minor versions).
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True, slots=True)
class Installation:
    """What must fit together."""

    torch: str  # its version
    cuda: str | None  # of CUDA, that torch is built for; None: for none
    driver: str | None  # version of NVIDIA's kernel module; None: there is none
    gpus: int = 0  # that this module knows
    visible: str | None = None  # CUDA_VISIBLE_DEVICES of this process; None: it is not set, and all GPUs are

    @property
    def sees_no_gpu(self) -> bool:
        """Whether that variable hides all GPUs: CUDA takes what stands before the first that is not there."""
        if self.visible is None:
            return False
        first = self.visible.split(",")[0].strip()
        if first.isdecimal():
            return int(first) >= self.gpus > 0
        return not first.startswith(("GPU-", "MIG-"))


def installation(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> Installation:
    """What is here. root: of the file system."""
    gpus = len(list(root.glob("proc/driver/nvidia/gpus/*")))
    visible = environ.get(VISIBLE_DEVICES)
    return Installation(torch.__version__, torch.version.cuda, driver_version(root), gpus, visible)


def driver_version(root: Path = ROOT) -> str | None:
    """As the kernel module says it, in the form 580.65.06."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", text)
    return found[0] if found else None


def gpu_problem(device: torch.device) -> str | None:
    """Use the device once; what went wrong, in one line, or None. Blocks, and takes the device's first memory."""
    try:
        check_arithmetic(device)
    except (RuntimeError, AssertionError, DeviceBrokenError) as error:  # a torch without CUDA asserts
        return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
    return None


def check_arithmetic(device: torch.device, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> None:
    """Multiply matrices of small whole numbers there, which fp32 and TF32 do exactly, and wait for the result.

    Raises:
        DeviceBrokenError: it is wrong.
        RuntimeError, AssertionError: torch cannot use the device.
    """
    left = (torch.arange(SIDE * SIDE) * 7 % 11 - 5).view(SIDE, SIDE)
    right = (torch.arange(SIDE * SIDE) * 5 % 13 - 6).view(SIDE, SIDE)
    product = multiply(left.to(device, torch.float32), right.to(device, torch.float32))
    if not torch.equal(product.cpu(), (left @ right).float()):
        raise DeviceBrokenError(f"{device} multiplies two matrices of whole numbers wrongly")


def advice(found: Installation) -> str:
    """What to do about a GPU that does not work, from what is installed."""
    if found.cuda is None:
        return f"torch {found.torch} is built without CUDA: install a CUDA build of it"
    oldest = OLDEST_DRIVERS.get(int(found.cuda.split(".")[0]))
    needs = f"torch {found.torch} (CUDA {found.cuda}) needs an NVIDIA driver"
    needs += f" of {oldest} or newer" if oldest else ""
    if found.driver is None:
        return f"{needs}, and none is loaded here: install it, or run the container with the NVIDIA runtime"
    if oldest and int(found.driver.split(".")[0]) < oldest:
        return f"{needs}, and this machine has {found.driver}: update the driver, or install a torch for an older CUDA"
    if found.sees_no_gpu:
        there = f"; there are {found.gpus}, from 0 on" if found.gpus else ""
        return f"{VISIBLE_DEVICES} is {found.visible!r} and names no GPU of this machine{there}: unset it, or name one"
    only = "" if found.visible is None else f" ({VISIBLE_DEVICES} is {found.visible!r})"
    fits = f"the driver {found.driver} fits torch {found.torch}"
    return f"{fits}: look at `nvidia-smi`{only} and the kernel's log for Xid errors"
