"""What the deployments of all stages have in common: how a replica is set up, and what Serve calls."""

import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from deployments.logs.lines import begin_log, name_replica
from deployments.logs.masking import secrets_of
from deployments.messages import Event, ReplicaInfo, Stage, StageTask
from deployments.metrics import names
from deployments.metrics.disks import count_disk
from deployments.metrics.names import StartPhase
from deployments.metrics.recorder import RECORDER
from deployments.replica.connections import Connections, connect
from deployments.replica.cuda_environment import set_cuda_environment
from deployments.replica.gpu_metrics import count_gpu
from deployments.replica.gpu_state import GpuWatch, NoGpuWatch, gpu_watch, why_unfit
from deployments.replica.host import assigned_gpus, describe_device, limit_memory, replica_device, set_threads
from deployments.replica.running_task import RunningTask, Timing
from deployments.replica.stage_worker import StageWorker
from deployments.settings import WorkerSettings
from deployments.storage.models.bucket import FetchOptions
from deployments.storage.models.hub import StorePins
from deployments.storage.models.store import model_folder, source_revision
from deployments.storage.work_revision import work_revision
from deployments.tracing.tracer import TRACER
from deployments.watchdog.heartbeat import watch_this_process

ROLES = {Stage.ENCODING: "encoder", Stage.SAMPLING: "sampler", Stage.DECODING: "decoder"}
"""What replicas are called to people."""


class StageReplica(ABC):
    """A replica of one stage.

    A subclass loads its parts of the model in its constructor, calls `start_worker` once it can do
    tasks, and does one in `work`.

    Args:
        settings: of the stage.
        connections: the ways out; the real ones, which exist only inside a Serve replica, by
            default.
        timing: the pace of its talk with the registry and the store.

    Raises:
        PermanentError, StorageUnavailableError: as `model_folder` does; `gpu_unusable`, as `choose_device` does.
    """

    stage: ClassVar[Stage]
    model_parts: ClassVar[tuple[str, ...]]
    """Subfolders of the model that this stage needs."""

    worker: StageWorker
    gpu: GpuWatch | NoGpuWatch
    """What NVML says of the device."""

    def __init__(
        self, settings: WorkerSettings, connections: Connections | None = None, timing: Timing = Timing()
    ) -> None:
        # Only a Serve replica is started again.
        self._phase_began = time.perf_counter()
        self._watched = watch_this_process() if connections is None else None
        if connections is None:
            begin_log(settings.logging, ROLES[self.stage], secrets_of(settings))
        TRACER.start(settings.tracing, ROLES[self.stage])
        self._settings = settings
        self._connections = connections or connect(settings)
        name_replica(self._connections.replica)
        self._timing = timing
        self._store = self._connections.store
        if assigned_gpus():
            set_cuda_environment()
        self._device = replica_device(settings.cpu_fallback)
        self.gpu = gpu_watch(self._device)
        limit_memory(self._device, settings.memory_fraction)
        set_threads(settings.torch_threads)
        limit = settings.model.cache_max_gb
        self._folder = model_folder(
            settings.model,
            self.model_parts,
            self._connections.open_bucket,
            pins=StorePins(self._store),
            options=FetchOptions(
                cache_bytes=None if limit is None else int(limit * 1e9), exchange=self._connections.exchange
            ),
        )
        self.end_phase("files")

    def end_phase(self, phase: StartPhase) -> None:
        """A part of the start is over: its seconds are counted. A subclass calls it from its constructor."""
        now = time.perf_counter()
        RECORDER.observe(names.START_SECONDS, now - self._phase_began, self.stage, phase)
        self._phase_began = now

    def work_revision(self, stage: Stage) -> str:
        """Of the model, as far as its work is in what `stage` leaves for the next one; blocks."""
        settings = self._settings
        return work_revision(settings.model, settings.dtypes, self._folder, stage, self._connections.open_bucket)

    def start_worker(self, slots: int, max_tokens: int | None = None, note: str = "") -> None:
        """Announce this replica to the registry. For the arguments see `ReplicaInfo`; `note` goes with its device."""
        info = ReplicaInfo(
            replica=self._connections.replica,
            stage=self.stage,
            slots=slots,
            device=", ".join(filter(None, (describe_device(self._device), note))),
            model=self._settings.model.name,
            max_tokens=max_tokens,
            revision=source_revision(self._settings.model.source, self._folder),
        )
        self.worker = StageWorker(
            info, self._connections.registry, device_problem=self._device_problem, timing=self._timing
        )

    def _device_problem(self) -> str | None:
        figures = self.gpu.look()
        count_gpu(self.gpu.uuid, figures)
        count_disk("models", self._folder)
        count_disk("temporary", Path(tempfile.gettempdir()))
        return why_unfit(figures)

    async def run(self, task: StageTask) -> None:
        """Do one task. The registry learns all of it by reports; a failed task raises nothing."""
        await self.worker.run(task, self.work)

    @abstractmethod
    async def work(self, running: RunningTask) -> Event | None:
        """Do the task; returns None when it is finished, or `Parked`."""

    async def check_health(self) -> None:
        """Raises RuntimeError if Serve must replace this replica."""
        self.worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "worker"):  # not if the constructor failed
            self.worker.close()
