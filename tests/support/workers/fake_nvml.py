"""NVML as `pynvml` shows it, of GPUs whose figures the test sets."""

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

T = TypeVar("T")
NOT_SUPPORTED, NOT_FOUND, TIMEOUT, LOST, RESET_REQUIRED = 3, 6, 10, 15, 16


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__({LOST: "GPU is lost", RESET_REQUIRED: "GPU requires restart"}.get(value, f"error {value}"))
        self.value = value


@dataclass(eq=False)
class FakeGpu:
    """None: it does not support the question."""

    uuid: str = "GPU-1234"
    total: int = 80_000_000_000
    used: int = 1_000_000_000
    utilization: int | None = 40
    milliwatts: int | None = 300_500
    temperature: int | None = 55
    uncorrected: int | None = 0
    remapped: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    retirement_pending: int | None = None
    events: deque[int] | None = field(default_factory=deque)  # Xids that nobody has taken yet
    processes: dict[int, int | None] | None = field(default_factory=dict)  # bytes that each holds
    part_of: "FakeGpu | None" = None  # the GPU of a MIG instance
    error: int | None = None  # of every question


class FakeNvml:
    NVMLError = FakeNvmlError
    NVML_ERROR_GPU_IS_LOST = LOST
    NVML_ERROR_RESET_REQUIRED = RESET_REQUIRED
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_FEATURE_ENABLED = 1
    nvmlEventTypeXidCriticalError = 8

    def __init__(self, *gpus: FakeGpu) -> None:
        self._gpus = gpus
        self.initialised = False

    def nvmlInit(self) -> None:
        self.initialised = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in self._gpus:
            if gpu.uuid == uuid:
                return gpu
        raise FakeNvmlError(NOT_FOUND)

    def nvmlDeviceIsMigDeviceHandle(self, device: FakeGpu) -> Any:
        return SimpleNamespace(value=int(device.part_of is not None))

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice: FakeGpu) -> FakeGpu:
        return self._answer(migDevice, migDevice.part_of)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> Any:
        used = SimpleNamespace(total=handle.total, used=handle.used, free=handle.total - handle.used)
        return self._answer(handle, used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> Any:
        found = self._answer(handle, handle.processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in found.items()]

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> Any:
        return SimpleNamespace(gpu=self._answer(handle, handle.utilization), memory=0)

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        return self._answer(handle, handle.milliwatts)

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        return self._answer(handle, handle.temperature)

    def nvmlDeviceGetTotalEccErrors(self, handle: FakeGpu, errorType: int, counterType: int) -> int:
        return self._answer(handle, handle.uncorrected)

    def nvmlDeviceGetRemappedRows(self, device: FakeGpu) -> tuple[int, int, int, int]:
        return self._answer(device, device.remapped)

    def nvmlDeviceGetRetiredPagesPendingStatus(self, device: FakeGpu) -> int:
        return self._answer(device, device.retirement_pending)

    def nvmlEventSetCreate(self) -> list[FakeGpu]:
        return []

    def nvmlDeviceRegisterEvents(self, handle: FakeGpu, eventTypes: int, eventSet: list[FakeGpu]) -> None:
        self._answer(handle, handle.events)
        eventSet.append(handle)

    def nvmlEventSetWait_v2(self, eventSet: list[FakeGpu], timeoutms: int) -> Any:
        for gpu in eventSet:
            if gpu.events:
                return SimpleNamespace(eventType=self.nvmlEventTypeXidCriticalError, eventData=gpu.events.popleft())
        raise FakeNvmlError(TIMEOUT)

    def _answer(self, gpu: FakeGpu, value: T | None) -> T:
        if gpu.error is not None:
            raise FakeNvmlError(gpu.error)
        if value is None:
            raise FakeNvmlError(NOT_SUPPORTED)
        return value
