"""Which errors mean that a device ran out of memory, and which that it is lost to this process. Pure.

After an illegal access, a launch failure or an Xid the process's CUDA context is dead for good: each later call fails
in milliseconds, and only a new process helps. Libraries on the device (cuDNN, cuBLAS, NCCL) report it, and a lack of
memory, by a status of their own. torch raises `AcceleratorError` for the first kind and a plain `RuntimeError` for most
others, so their texts are read.
"""

import re
from collections.abc import Iterator
from enum import StrEnum

import torch

from deployments.errors import DEVICE_BROKEN, DeviceBrokenError

OUT_OF_MEMORY = "out_of_memory"


class DeviceFailure(StrEnum):
    """What befell the device; the value is the code with which a task fails."""

    OUT_OF_MEMORY = OUT_OF_MEMORY  # it works, and this was too much for it
    BROKEN = DEVICE_BROKEN  # it may not be used by this process any more


# Of CUTLASS' Python compiler, which FlashAttention 4 runs on: they are no RuntimeError, and it is no need of ours.
_LAUNCH_ERRORS = frozenset({"DSLCudaRuntimeError"})

# torch: "CUDA error: ..." (kernels, copies), "CUDA driver error: ..." (expandable segments); Triton: "Triton Error
# [CUDA]: ...". cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY both read "out of memory".
_MEMORY_FORMS = re.compile(
    r"\b(?:CUDA|HIP)(?: driver)? error: out of memory\b"
    r"|\bTriton Error \[(?:CUDA|HIP)\]: out of memory\b"
    r"|\b(?:CUDA|HIP) out of memory\b"
)
_BROKEN_FORMS = re.compile(
    r"\b(?:CUDA|HIP)(?: driver)? error: "
    r"|\bTriton Error \[(?:CUDA|HIP)\]: "
    r"|\bcuDNN error: |\bcuDNN Frontend error: |\bCUDNN_STATUS_(?!SUCCESS)\w+|\bCUDNN_BACKEND_\w+ .*\bfailed\b"
    r"|\bCU(?:BLAS|SOLVER|SPARSE|SPARSELT|RAND|TENSOR)_STATUS_(?!SUCCESS)\w+|\bcuFFT error: "
    r"|\bunable to find an engine to execute this computation\b"
    r"|\bNCCL (?:error|Error)\b|\bnccl(?:UnhandledCuda|System|Internal|Remote)Error\b"
    r"|\bNVML_SUCCESS == "  # torch's allocator asks NVML when it has no memory, and NVML does not answer
    r"|\bCUDA unknown error\b|\bNo CUDA GPUs are available\b"
)


def device_failure(error: BaseException) -> DeviceFailure | None:
    """What the error says of the device; None if it is no error of a device.

    The error itself is looked at first, then what it was raised from, so that one that a library has wrapped counts.
    """
    return next((failure for link in _chain(error) if (failure := _own_failure(link)) is not None), None)


def is_broken(error: BaseException) -> bool:
    """Whether the device is lost to this process."""
    return device_failure(error) is DeviceFailure.BROKEN


def _own_failure(error: BaseException) -> DeviceFailure | None:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return DeviceFailure.OUT_OF_MEMORY
    if isinstance(error, DeviceBrokenError):
        return DeviceFailure.BROKEN
    if _LAUNCH_ERRORS.intersection(base.__name__ for base in type(error).__mro__):
        return DeviceFailure.BROKEN
    if not isinstance(error, RuntimeError):  # texts of other kinds may quote anything
        return None
    text = str(error)
    if _MEMORY_FORMS.search(text):
        return DeviceFailure.OUT_OF_MEMORY
    if isinstance(error, torch.AcceleratorError) or _BROKEN_FORMS.search(text):
        return DeviceFailure.BROKEN
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, those of a group, and what each was raised from or during; each once."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop(0)
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if isinstance(link, BaseExceptionGroup):
            todo += link.exceptions
        todo += [link.__cause__, None if link.__suppress_context__ else link.__context__]
