"""What the errors of torch and of the libraries below it say of the device."""

import pytest
import torch
from torch.distributed import DistBackendError

from deployments.errors import DeviceBrokenError, TransientError
from deployments.replica.device_errors import DeviceFailure, device_failure, is_broken

OUT_OF_MEMORY, BROKEN = DeviceFailure.OUT_OF_MEMORY, DeviceFailure.BROKEN

# As torch 2.11 writes them, with what follows cut off.
TEXTS = [
    (
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
        BROKEN,
    ),
    ("CUDA error: unspecified launch failure", BROKEN),
    ("CUDA error: device-side assert triggered", BROKEN),
    ("CUDA error: uncorrectable ECC error encountered", BROKEN),
    ("CUDA error: no kernel image is available for execution on the device", BROKEN),
    ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`", BROKEN),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", BROKEN),
    ("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`", BROKEN),
    ("CUDA error: CUSPARSE_STATUS_NOT_INITIALIZED when calling `cusparseCreate(handle)`", BROKEN),
    ("cuFFT error: CUFFT_INTERNAL_ERROR", BROKEN),
    ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", BROKEN),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", BROKEN),
    ("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built.", BROKEN),
    ("GET was unable to find an engine to execute this computation", BROKEN),
    ("CUDA driver error: device not ready", BROKEN),
    ("Triton Error [CUDA]: an illegal memory access was encountered", BROKEN),
    ("NCCL error in: NCCLUtils.cpp:94, unhandled cuda error, NCCL version 2.27.5\nncclUnhandledCudaError: ...", BROKEN),
    ('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1016', BROKEN),
    ("No CUDA GPUs are available", BROKEN),
    ("CUDA unknown error - this may be due to an incorrectly set up environment", BROKEN),
    ("CUDA error: out of memory", OUT_OF_MEMORY),
    ("CUDA driver error: out of memory", OUT_OF_MEMORY),
    ("Triton Error [CUDA]: out of memory", OUT_OF_MEMORY),
    ("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 79.18 GiB", OUT_OF_MEMORY),
    ("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)", None),
    ("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!", None),
    ("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0", None),
    ("cuDNN returned CUDNN_STATUS_SUCCESS", None),
]


@pytest.mark.parametrize(("text", "failure"), TEXTS)
def test_the_text_of_a_runtime_error_tells(text: str, failure: DeviceFailure | None) -> None:
    assert device_failure(RuntimeError(text)) is failure
    assert device_failure(ValueError(text)) is None, "a prompt may quote it"


class DSLCudaRuntimeError(Exception):
    """As CUTLASS' compiler names it, which is not installed here."""


def test_classes_tell_whatever_the_text() -> None:
    assert device_failure(type("CUDADialectError", (DSLCudaRuntimeError,), {})("719")) is BROKEN
    assert device_failure(torch.AcceleratorError("of a form that nobody knows yet")) is BROKEN
    assert device_failure(torch.OutOfMemoryError("tried 3 GiB")) is OUT_OF_MEMORY
    assert device_failure(MemoryError()) is OUT_OF_MEMORY
    assert device_failure(DeviceBrokenError("it multiplies wrongly")) is BROKEN
    assert device_failure(DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited")) is BROKEN


def test_what_torch_raises_on_the_cpu_says_nothing_of_a_device() -> None:
    with pytest.raises(RuntimeError) as shapes:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    with pytest.raises(RuntimeError) as memory:
        torch.empty(1 << 60)
    assert device_failure(shapes.value) is None
    assert device_failure(memory.value) in (None, OUT_OF_MEMORY)


def raised(outer: BaseException, inner: BaseException, suppress: bool = False) -> BaseException:
    """`outer`, as it is when it was raised while `inner` was handled."""
    outer.__context__ = inner
    if suppress:
        outer.__suppress_context__ = True
    return outer


def test_what_an_error_was_raised_from_counts() -> None:
    broken = torch.AcceleratorError("CUDA error: unspecified launch failure")
    assert is_broken(raised(KeyError("x"), broken))
    assert is_broken(raised(TransientError("mp4_failed", "no mp4"), RuntimeError("cuDNN error: CUDNN_STATUS_X")))
    assert not is_broken(raised(KeyError("x"), broken, suppress=True))
    assert is_broken(ExceptionGroup("several", [ValueError("x"), broken]))


def test_the_outermost_error_that_says_something_counts() -> None:
    out_of_memory, broken = torch.OutOfMemoryError("3 GiB"), RuntimeError("CUDA error: unspecified launch failure")
    assert device_failure(raised(broken, out_of_memory)) is BROKEN
    assert device_failure(raised(out_of_memory, broken)) is OUT_OF_MEMORY


def test_a_chain_that_is_a_circle_ends() -> None:
    one, other = KeyError("one"), KeyError("other")
    one.__context__, other.__context__ = other, one
    assert device_failure(one) is None
