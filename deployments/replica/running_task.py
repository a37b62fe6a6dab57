"""A task as its work sees it: stop flag, progress, model threads, storage, timing."""

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

from deployments.errors import StoppedError, StorageUnavailableError
from deployments.messages import Progress, StageTask
from deployments.metrics import names
from deployments.metrics.recorder import PUSH_EVERY_S, RECORDER
from deployments.tracing.span import SILENT, Kind, Span

if TYPE_CHECKING:
    from deployments.storage.object_store import Store

P = ParamSpec("P")
T = TypeVar("T")

SIZE = "mochi_serve.object.bytes"

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The pace of a replica's talk with the registry, with Serve and with the object store. All in seconds."""

    announce_retry_s: float = 2.0  # until the next announcement, after one that the registry did not hear
    report_every_s: float = 0.2  # between two reports of progress, at least
    heartbeat_s: float = 5.0  # until a task is reported that makes no progress
    stall_s: float = 900.0  # until a task without a step counts as stuck, and its replica must be replaced
    end_retry_s: float = 1.0  # until the end of a task is reported again that the registry did not hear
    device_every_s: float = 10.0  # between two looks at whether the device should be used
    drain_poll_s: float = 0.25  # between two looks at whether Serve wants the replica to leave
    metrics_every_s: float = PUSH_EVERY_S  # between two times that the registry is told what the process counted
    reservations_every_s: float = 5.0  # between two searches for slots that dead callers reserved
    store_retry_s: float = 1.0  # until a result is written again to a store that is away
    store_away_s: float = 60.0  # until a store that is away is given up


class Stopwatch:
    """Wall time by part of a stage: each `lap` takes the time since the last."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 4)
        self._last = now


class RunningTask:
    """A task being worked on: how its work asks whether to go on and reports its progress. Thread-safe.

    Args:
        task: what is to be done.
        executor: the replica's model threads.
        news: set on the loop whenever there is progress to report; the tasks of a replica share it.
        timing: the replica's pace.
        now_ns: a monotonic clock in nanoseconds.
    """

    def __init__(
        self,
        task: StageTask,
        executor: ThreadPoolExecutor,
        news: asyncio.Event,
        timing: Timing = Timing(),
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.task = task
        self.timing = timing
        self.clock = Stopwatch()
        self.span: Span = SILENT  # its stretch on this replica
        self.at_work = False  # it has begun, and its end is not reported yet: it has reports and heartbeats
        self.stopped = False
        self.park_reason: str | None = None  # set once the work is to park its sample
        self.checkpoint_step = 0  # of the newest checkpoint that this replica wrote
        self.latest: Progress | None = None
        self.has_new_progress = False
        self._executor = executor
        self._news = news
        self._now_ns = now_ns
        self._active_ns = now_ns()
        self._reported_ns = now_ns()
        self._begun_at: int | None = None
        self._device_ns = 0
        self._passes = 0.0
        self._in_thread_since: int | None = None
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Make the next `raise_if_stopped` raise."""
        self.stopped = True

    def ask_to_park(self, reason: str) -> None:
        """Ask the work to park its sample after this step; work that is short may end instead."""
        if self.park_reason is None:
            self.span.event("yield asked", {"mochi_serve.reason": reason})
        self.park_reason = reason

    def mark_active(self) -> None:
        """Note that the task is not stuck."""
        self._active_ns = self._now_ns()

    def raise_if_stopped(self) -> None:
        """Raises StoppedError once the task is to stop. Call it at each step and while waiting."""
        self.mark_active()
        if self.stopped:
            raise StoppedError(f"{self.task.job_id} was stopped")

    @property
    def is_stalled(self) -> bool:
        """Whether it made no step for so long that its replica must be replaced."""
        return self._now_ns() - self._active_ns > self.timing.stall_s * 1e9

    @property
    def is_due(self) -> bool:
        """Whether to report it now. A stalled task has no heartbeat: its lease is to lapse."""
        silent_ns = self._now_ns() - self._reported_ns
        return self.has_new_progress or (silent_ns >= self.timing.heartbeat_s * 1e9 and not self.is_stalled)

    def add_device_ns(self, nanoseconds: int, passes: float = 0.0) -> None:
        """Add the time that the task held the device for; whole numbers, so that shares add up.

        Args:
            passes: of the model, that were run for it in this time.
        """
        with self._lock:
            self._device_ns += nanoseconds
            self._passes += passes
        RECORDER.count(names.BUSY_SECONDS, self.task.stage, by=nanoseconds / 1e9)

    @property
    def device_s(self) -> float:
        """Seconds of the device so far, with those of the thread that is at work now."""
        with self._lock:
            return self._device_s()

    @property
    def passes(self) -> float:
        """Passes of the model so far; one that several samples shared counts in parts."""
        with self._lock:
            return self._passes

    def _device_s(self) -> float:
        in_thread = 0 if self._in_thread_since is None else self._now_ns() - self._in_thread_since
        return (self._device_ns + in_thread) / 1e9

    def progress(self, done: int, total: int) -> None:
        """Note the progress, then `raise_if_stopped`. Cheap: the latest is sent now and then."""
        with self._lock:
            self._begun_at = done if self._begun_at is None else self._begun_at
            unsent = self.latest.preview if self.has_new_progress and self.latest is not None else None
            self.latest = Progress(done, total, self._begun_at, unsent, self._device_s(), self._passes)
            self.has_new_progress = True
        self._loop.call_soon_threadsafe(self._news.set)
        self.raise_if_stopped()

    def attach_preview(self, preview: bytes) -> None:
        """Attach a picture to the latest progress."""
        with self._lock:
            if self.latest is not None:
                self.span.event("preview", {"mochi_serve.step": self.latest.done})
                self.latest = replace(self.latest, preview=preview)
                self.has_new_progress = True
        self._loop.call_soon_threadsafe(self._news.set)

    def take_progress(self) -> Progress | None:
        """The latest progress, for a report, with the device's time until now; None before the first."""
        with self._lock:
            self.has_new_progress = False
            self._reported_ns = self._now_ns()
            if self.latest is not None:
                self.latest = replace(self.latest, device_s=self._device_s(), passes=self._passes)
            return self.latest

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a model thread of the replica; its time there counts as the device's."""
        self.raise_if_stopped()
        context = contextvars.copy_context()
        return await self._loop.run_in_executor(
            self._executor, lambda: context.run(self._on_device, lambda: without_grad(work, *args, **kwargs))
        )

    def _on_device(self, work: Callable[[], T]) -> T:
        self._in_thread_since = begun = self._now_ns()
        try:
            return work()
        finally:
            took = self._now_ns() - begun
            with self._lock:
                self._in_thread_since = None
                self._device_ns += took
            RECORDER.count(names.BUSY_SECONDS, self.task.stage, by=took / 1e9)


class TaskStore:
    """The object store as a task sees it: once the task is stopped, no change begins any more.

    Nobody needs what a stopped task would write, and its job may be another replica's by now. What
    writes or deletes raises StoppedError then; a change that has begun may end.
    """

    def __init__(self, store: "Store", running: RunningTask) -> None:
        self._store = store
        self._running = running

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        self._running.raise_if_stopped()
        with self._span("store put", key, len(data)):
            await self._store.put(key, data, content_type)

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        self._running.raise_if_stopped()
        with self._span("store put", key, path.stat().st_size):
            await self._store.put_file(key, path, content_type)

    async def put_result(self, key: str, data: bytes, content_type: str) -> None:
        """As `put`, for what the device has worked for: a store that is away is waited for.

        Raises:
            StorageUnavailableError: it stayed away for `Timing.store_away_s`.
        """
        await self._outlast(lambda: self.put(key, data, content_type))

    async def put_result_file(self, key: str, path: Path, content_type: str) -> None:
        """As `put_file` and `put_result`."""
        await self._outlast(lambda: self.put_file(key, path, content_type))

    async def get(self, key: str) -> bytes:
        with self._span("store get", key) as span:
            data = await self._store.get(key)
            span.set({SIZE: len(data)})
            return data

    async def list_keys(self, prefix: str) -> list[str]:
        return await self._store.list_keys(prefix)

    async def delete(self, key: str) -> None:
        self._running.raise_if_stopped()
        await self._store.delete(key)

    def _span(self, name: str, key: str, size: int | None = None) -> Span:
        about: dict[str, str | int | float | bool] = {"mochi_serve.object.key": key}
        if size is not None:
            about[SIZE] = size
        return self._running.span.child(name, about, Kind.CLIENT)

    async def _outlast(self, write: Callable[[], Awaitable[None]]) -> None:
        timing = self._running.timing
        deadline = time.monotonic() + timing.store_away_s
        while True:
            try:
                return await write()
            except StorageUnavailableError as error:
                # A new attempt of the job would cost more than the wait.
                if time.monotonic() >= deadline:
                    raise
                logger.warning("%s; the finished work is kept until it is back", error)
            await asyncio.sleep(timing.store_retry_s)


def without_grad(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Grad mode belongs to a thread: what runs in another must turn it off there."""
    with torch.no_grad():
        return work(*args, **kwargs)
