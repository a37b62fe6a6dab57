"""What the driver says of a GPU: its figures, and why it should take no tasks now.

NVML is the driver's own library; `nvidia-ml-py` calls it as the module `pynvml`. Where either is missing, or knows no
such GPU, there are no figures and no opinion, said once. What a GPU does not support, as most of it inside a MIG
instance, is None.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch

FULL = 0.95  # of a GPU's memory: held by other processes, it has no room for work

# A fault of one program on the GPU and not of the GPU: who caused it gets a CUDA error, all others go on. The list of
# NVIDIA's own device plugin for Kubernetes (internal/rm/health.go): 13 exception of the graphics engine, 31 page fault,
# 43 reset channel, 45 preemptive cleanup, 68 exception of the video processor, 109 timeout of a context switch.
PROGRAM_XIDS = frozenset({13, 31, 43, 45, 68, 109})
XID_NAMES = {
    48: "double-bit ECC error",
    62: "halt of the micro-controller",
    63: "row remapping or page retirement",
    64: "failed row remapping",
    74: "NVLink error",
    79: "fallen off the bus",
    92: "many single-bit ECC errors",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "timeout of the GSP",
    120: "error of the GSP",
}
MOST_EVENTS = 64  # that are taken in one look

_logger = logging.getLogger("ray.serve")
T = TypeVar("T")


class Nvml(Protocol):
    """What is used of `pynvml`, by its own names. Its calls raise NVMLError, whose `value` is one of NVML_ERROR_*."""

    @property
    def NVMLError(self) -> type[Exception]: ...

    NVML_ERROR_GPU_IS_LOST: int
    NVML_ERROR_RESET_REQUIRED: int
    NVML_TEMPERATURE_GPU: int
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED: int
    NVML_VOLATILE_ECC: int
    NVML_FEATURE_ENABLED: int
    nvmlEventTypeXidCriticalError: int

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...
    def nvmlDeviceIsMigDeviceHandle(self, device: Any) -> Any: ...
    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice: Any) -> Any: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...
    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int: ...
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int: ...
    def nvmlDeviceGetTotalEccErrors(self, handle: Any, errorType: int, counterType: int) -> int: ...
    def nvmlDeviceGetRemappedRows(self, device: Any) -> tuple[int, int, int, int]: ...
    def nvmlDeviceGetRetiredPagesPendingStatus(self, device: Any) -> int: ...
    def nvmlEventSetCreate(self) -> Any: ...
    def nvmlDeviceRegisterEvents(self, handle: Any, eventTypes: int, eventSet: Any) -> None: ...
    def nvmlEventSetWait_v2(self, eventSet: Any, timeoutms: int) -> Any: ...


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """A GPU at a moment. None: not known here."""

    memory_total: int | None = None  # bytes; of the MIG instance, if it is one
    memory_used: int | None = None  # bytes, by all processes
    memory_own: int = 0  # bytes of it that this process's allocator holds
    utilization: int | None = None  # percent of the last second or less in which a kernel ran
    power_w: float | None = None
    temperature_c: int | None = None
    uncorrected_ecc: int | None = None  # errors since the driver was loaded
    remapped_rows: int | None = None  # for uncorrectable errors
    remap_pending: bool | None = None  # a row will be remapped at the next reset
    remap_failed: bool | None = None
    retirement_pending: bool | None = None  # a page will be retired at the next reset
    xids: tuple[int, ...] = ()  # critical events since this process began to look, the oldest first
    lost: str | None = None  # the driver's words, if it cannot reach the GPU any more

    @property
    def used_by_others(self) -> float:
        """The part of the memory that other processes hold, from 0 to 1; 0 if it is not known."""
        if not self.memory_total or self.memory_used is None:
            return 0.0
        return max(0, self.memory_used - self.memory_own) / self.memory_total


def why_unfit(figures: GpuFigures) -> str | None:
    """Why a GPU with these figures should take no tasks, for people; None if nothing speaks against it."""
    hardware_xids = [xid for xid in figures.xids if xid not in PROGRAM_XIDS]
    if figures.lost is not None:
        return f"the driver has lost the GPU ({figures.lost}): reset it, or restart the machine"
    if hardware_xids:
        xid = hardware_xids[-1]
        name = f" ({XID_NAMES[xid]})" if xid in XID_NAMES else ""
        return f"the driver reported Xid {xid}{name} for the GPU: reset it, or restart the machine"
    if figures.remap_failed:
        return "the GPU has no spare rows left to remap a damaged one to: replace it"
    if figures.retirement_pending:
        return "the GPU has a damaged memory page that only a reset takes out of use: reset it, or restart the machine"
    if figures.uncorrected_ecc:
        count = f"{figures.uncorrected_ecc} uncorrected memory error{'s' if figures.uncorrected_ecc > 1 else ''}"
        return f"the GPU has had {count} since the driver was loaded: reset it, or restart the machine"
    if figures.used_by_others > FULL:
        return f"other processes hold {figures.used_by_others:.0%} of the GPU's memory: end them, or take another GPU"
    return None


class GpuWatch:
    """Asks NVML about one GPU. Not thread-safe; each call takes a few milliseconds.

    Args:
        nvml: the library, initialised.
        handle: of the GPU or MIG instance.
        own_memory: bytes that this process's allocator holds of it.
        uuid: of the GPU or MIG instance, without NVML's first word.
    """

    def __init__(self, nvml: Nvml, handle: Any, own_memory: Callable[[], int], uuid: str = "") -> None:
        self.uuid = uuid
        self._nvml = nvml
        self._handle = handle
        self._own_memory = own_memory
        self._lost: str | None = None
        self._xids: tuple[int, ...] = ()
        self._gpu = self._whole_gpu()
        self._events = self._ask(self._listen)

    def look(self) -> GpuFigures:
        """The figures now."""
        self._lost = None
        nvml, gpu = self._nvml, self._gpu
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(self._handle))
        rates = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(gpu))
        milliwatts = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(gpu))
        remapped = self._ask(lambda: nvml.nvmlDeviceGetRemappedRows(gpu))
        pending = self._ask(lambda: nvml.nvmlDeviceGetRetiredPagesPendingStatus(gpu))
        self._xids += tuple(self._new_xids())
        return GpuFigures(
            memory_total=None if memory is None else int(memory.total),
            memory_used=None if memory is None else int(memory.used),
            memory_own=self._own_memory(),
            utilization=None if rates is None else int(rates.gpu),
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=self._ask(lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
            uncorrected_ecc=self._ask(
                lambda: nvml.nvmlDeviceGetTotalEccErrors(
                    gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                )
            ),
            remapped_rows=None if remapped is None else remapped[1],
            remap_pending=None if remapped is None else bool(remapped[2]),
            remap_failed=None if remapped is None else bool(remapped[3]),
            retirement_pending=None if pending is None else pending == nvml.NVML_FEATURE_ENABLED,
            xids=self._xids,
            lost=self._lost,
        )

    def problem(self) -> str | None:
        """See `why_unfit`."""
        return why_unfit(self.look())

    def _whole_gpu(self) -> Any:
        """The GPU that a MIG instance is a part of: what can break is told of it alone."""
        nvml, handle = self._nvml, self._handle
        is_instance = self._ask(lambda: nvml.nvmlDeviceIsMigDeviceHandle(handle))
        if not getattr(is_instance, "value", is_instance):  # a number of ctypes
            return handle
        return self._ask(lambda: nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)) or handle

    def _listen(self) -> Any:
        events = self._nvml.nvmlEventSetCreate()
        self._nvml.nvmlDeviceRegisterEvents(self._gpu, self._nvml.nvmlEventTypeXidCriticalError, events)
        return events

    def _new_xids(self) -> list[int]:
        """Those since the last look; NVML raises a timeout when there is none left."""
        xids: list[int] = []
        while self._events is not None and len(xids) < MOST_EVENTS:
            event = self._ask(lambda: self._nvml.nvmlEventSetWait_v2(self._events, 0))
            if event is None:
                break
            if event.eventType == self._nvml.nvmlEventTypeXidCriticalError:
                xids.append(int(event.eventData))
        return xids

    def _ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None if the GPU has none, or NVML may not tell."""
        try:
            return question()
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) in (
                self._nvml.NVML_ERROR_GPU_IS_LOST,
                self._nvml.NVML_ERROR_RESET_REQUIRED,
            ):
                self._lost = str(error)
            return None


class NoGpuWatch:
    """Of a device that NVML knows nothing of: it has no opinion."""

    uuid = ""
    figures: ClassVar[GpuFigures] = GpuFigures()

    def look(self) -> GpuFigures:
        """Nothing is known."""
        return self.figures

    def problem(self) -> str | None:
        """None."""
        return None


def open_nvml() -> Nvml:
    """The driver's library, initialised. Raises ImportError, or an error of `pynvml`, if it is not here."""
    nvml = cast(Nvml, importlib.import_module("pynvml"))
    nvml.nvmlInit()
    return nvml


def gpu_watch(device: torch.device, open_library: Callable[[], Nvml] = open_nvml) -> GpuWatch | NoGpuWatch:
    """A watch over the device of this process. For a CPU, or where NVML has nothing to say, one without an opinion."""
    if device.type != "cuda":
        return NoGpuWatch()
    return watch_by_uuid(
        str(torch.cuda.get_device_properties(device).uuid), lambda: torch.cuda.memory_reserved(device), open_library
    )


def watch_by_uuid(
    uuid: str, own_memory: Callable[[], int], open_library: Callable[[], Nvml] = open_nvml
) -> GpuWatch | NoGpuWatch:
    """As `gpu_watch`, by the id that CUDA gives the device, which is NVML's without its first word.

    CUDA numbers the devices that a process may see, NVML those of the machine; only the id is the same.
    """
    try:
        nvml = open_library()
        return GpuWatch(nvml, _find(nvml, uuid), own_memory, uuid)
    except Exception as error:  # a library of the driver that is broken must not stop a GPU that works
        _logger.warning("NVML tells nothing of GPU %s, so its state is not watched: %s", uuid, error)
        return NoGpuWatch()


def compute_processes(uuid: str, open_library: Callable[[], Nvml] = open_nvml) -> dict[int, int | None]:
    """Bytes that each process holds of a GPU, by process id, as far as the driver tells; none where it does not.

    In a container they are those of the host, or hidden.
    """
    try:
        nvml = open_library()
        found = nvml.nvmlDeviceGetComputeRunningProcesses(_find(nvml, uuid))
    except Exception as error:  # as in `watch_by_uuid`
        _logger.warning("NVML tells no processes of GPU %s: %s", uuid, error)
        return {}
    return {int(one.pid): one.usedGpuMemory for one in found}


def _find(nvml: Nvml, uuid: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
