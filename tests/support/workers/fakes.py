"""In-memory implementations of what a model worker is connected to."""

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import RegistryUnavailableError, WorkerError
from deployments.messages import Directive, Event, Progress, ReplicaInfo, Report, Stage, StageTask, VideoSpec
from deployments.metrics.recorder import Snapshot
from deployments.mochi.denoise import Sample
from deployments.mochi.preview import FILE
from deployments.replica.connections import Connections
from deployments.replica.registry_link import WorkerRegistry
from deployments.replica.running_task import RunningTask, Timing
from deployments.sampler.step_loop import LoopEntry, Step
from deployments.settings import WorkerSettings
from deployments.storage.object_store import Bucket
from serve_app.config import OVERRIDE_PREFIX, load_settings
from serve_app.registry.replicas import Mailbox
from tests.support import ROOT
from tests.support.workers.memory_store import MemoryStore

SHAPES = ROOT / "models" / "shapes"


class ReportLog(WorkerRegistry):
    """A registry that notes what replicas report.

    Args:
        unreachable: so many report calls fail first.
        stop_at: whether an event is answered with the directive to stop.
        park_at: whether an event is answered with the directive to park.
    """

    def __init__(
        self,
        unreachable: int = 0,
        stop_at: Callable[[Event], bool] = lambda event: False,
        park_at: Callable[[Event], bool] = lambda event: False,
    ) -> None:
        self.reports: list[Report] = []
        self.announced: list[ReplicaInfo] = []
        self.mailbox = Mailbox()
        self.batches = 0  # calls of report_all
        self.snapshots: list[Snapshot] = []
        self.unreachable = unreachable
        self._stop_at = stop_at
        self._park_at = park_at

    async def announce(self, info: ReplicaInfo, wait: bool) -> dict[str, Directive]:
        self.announced.append(info)
        return await self.mailbox.collect(info.replica, 0.05 if wait else 0)

    async def report(self, report: Report) -> Directive:
        self._fail_if_unreachable()
        return self._note(report)

    async def push_metrics(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    async def report_all(self, reports: list[Report]) -> list[Directive]:
        self._fail_if_unreachable()
        self.batches += 1
        return [self._note(report) for report in reports]

    def _fail_if_unreachable(self) -> None:
        if self.unreachable:
            self.unreachable -= 1
            raise RegistryUnavailableError("the registry restarts")

    def _note(self, report: Report) -> Directive:
        self.reports.append(report)
        if self._stop_at(report.event):
            return Directive.STOP
        return Directive.PARK if self._park_at(report.event) else Directive.CONTINUE

    @property
    def events(self) -> list[Event]:
        return [report.event for report in self.reports]

    @property
    def ends(self) -> list[Event]:
        """Events without progress."""
        return [event for event in self.events if not isinstance(event, Progress)]

    def events_of(self, job_id: str) -> list[Event]:
        """Events of one job without progress."""
        return [r.event for r in self.reports if r.job_id == job_id and not isinstance(r.event, Progress)]


def connections(log: ReportLog, store: MemoryStore) -> Connections:
    def open_bucket(name: str) -> Bucket:
        return store

    return Connections("replica-1", log, store, open_bucket)


def worker_settings(stage: Stage, source: Path = SHAPES, changes: Mapping[str, str] | None = None) -> WorkerSettings:
    """Of a stage of the included model. changes: to its profile, as in ``{"encoder.dtype": "bfloat16"}``."""
    environ = {f"{OVERRIDE_PREFIX}{key.replace('.', '__').upper()}": value for key, value in (changes or {}).items()}
    settings = load_settings(str(ROOT / "configs" / "shapes.yaml"), environ)
    whole = settings.worker(stage, "registry")
    return whole.model_copy(update={"model": whole.model.model_copy(update={"source": str(source)})})


def model_without_map(folder: Path) -> Path:
    """A copy of the included model in `folder`, without its preview map."""
    return Path(shutil.copytree(SHAPES, folder / "model", ignore=shutil.ignore_patterns(FILE)))


def spec(prompt: str = "a red circle moving right", **changes: Any) -> VideoSpec:
    values: dict[str, Any] = {
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "num_frames": 13,
        "fps": 24,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "seed": 1,
    }
    return VideoSpec(prompt=prompt, **(values | changes))


def undecorated(deployment: Any) -> Any:
    """The class behind `@serve.deployment`."""
    return deployment.func_or_class


def task(stage: Stage, video: VideoSpec | None = None) -> StageTask:
    return StageTask("video_1", "lease_1", stage, 1, video or spec())


class Clock:
    """A clock in nanoseconds, which goes on only by `advance`."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now

    def advance(self, nanoseconds: int) -> None:
        self.now += nanoseconds


def running_task(
    job_id: str = "video_1",
    video: VideoSpec | None = None,
    timing: Timing = Timing(),
    now_ns: Callable[[], int] = time.perf_counter_ns,
) -> RunningTask:
    """A task as its work sees it, without a replica around."""
    given = StageTask(job_id, f"lease of {job_id}", Stage.SAMPLING, 1, video or spec())
    return RunningTask(given, ThreadPoolExecutor(1), asyncio.Event(), timing, now_ns)


@contextmanager
def captured(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Ray's logger writes: it hands nothing on to pytest's own capture."""
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        yield caplog
    finally:
        logger.removeHandler(caplog.handler)


class GatedStep:
    """A denoising step that holds each pass until the test lets it through.

    So it is up to the test what happens between two steps and in the middle of one, and the same each time.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._permits = threading.Semaphore(0)
        self._open_for_good = False
        self._waiting: list[Sample] | None = None

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Sample | WorkerError]:
        if not self._open_for_good:
            self._loop.call_soon_threadsafe(self._arrive, list(samples))
            self._permits.acquire()
        return self._step(samples)

    def _arrive(self, samples: list[Sample]) -> None:
        self._waiting = samples
        self._news.set()

    async def at_gate(self, *entries: LoopEntry) -> list[Sample]:
        """The samples of the pass that is held, as soon as one is; none once all of these entries have left."""
        for entry in entries:
            entry.result.add_done_callback(lambda _: self._news.set())
        while self._waiting is None:
            if entries and all(entry.result.done() for entry in entries):
                return []
            self._news.clear()
            await self._news.wait()
        return self._waiting

    def let_through(self) -> None:
        """Let the pass run that is held."""
        self._waiting = None
        self._permits.release()

    def open(self) -> None:
        """Hold no pass back from now on."""
        self._open_for_good = True
        self.let_through()
