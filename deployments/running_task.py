"""A task being worked on, as its work sees it: stop flag, progress, model threads, timing, log lines with its id."""

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import torch

from deployments.errors import StoppedError
from deployments.messages import Progress, StageTask

P = ParamSpec("P")
T = TypeVar("T")

current_job: contextvars.ContextVar[str] = contextvars.ContextVar("current_job", default="")


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Puts the job's id before every message of a task, also from its thread."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        job_id = current_job.get()
        return (f"[{job_id}] {msg}" if job_id else msg), kwargs


logger = JobLogger(logging.getLogger("ray.serve"), {})


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
    """A task being worked on: how the work asks to go on and tells its progress. Thread-safe.

    Args:
        news: set on the loop whenever there is progress to tell; the tasks of a replica share it.
    """

    def __init__(self, task: StageTask, executor: ThreadPoolExecutor, news: asyncio.Event) -> None:
        self.task = task
        self.latest: Progress | None = None
        self.fresh = False
        self.moved_at = time.monotonic()
        self.reported_at = self.moved_at
        self.clock = Stopwatch()
        self.stopped = False
        self.yielding: str | None = None
        self.checkpointed = 0
        self.begun_at: int | None = None
        self._lock = threading.Lock()
        self._news = news
        self._executor = executor
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Make the next `check` raise."""
        self.stopped = True

    def yield_(self, reason: str) -> None:
        """Ask the work to let go at its next step, with its state kept; work that is short may end instead."""
        self.yielding = reason

    def moved(self) -> None:
        """Note that the task is not stuck."""
        self.moved_at = time.monotonic()

    def check(self) -> None:
        """Raises StoppedError once the task is to stop; call it at each step."""
        if self.stopped:
            raise StoppedError(f"{self.task.job_id} was stopped")

    def progress(self, done: int, total: int) -> None:
        """Tell the progress, then `check`. Cheap: the loop sends only the latest, a few times a second."""
        with self._lock:
            self.begun_at = done if self.begun_at is None else self.begun_at
            unsent = self.latest.preview if self.fresh and self.latest is not None else None
            self.latest = Progress(done, total, self.begun_at, unsent)
            self.fresh = True
        self.moved()
        self._loop.call_soon_threadsafe(self._news.set)
        self.check()

    def show(self, preview: bytes) -> None:
        """Attach a picture to the latest progress."""
        with self._lock:
            if self.latest is not None:
                self.latest = replace(self.latest, preview=preview)
                self.fresh = True
        self._loop.call_soon_threadsafe(self._news.set)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one of the replica's model threads."""
        self.check()
        context = contextvars.copy_context()
        return await self._loop.run_in_executor(
            self._executor, lambda: context.run(lambda: without_grad(work, *args, **kwargs))
        )


def without_grad(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Grad mode belongs to a thread: what runs in another must turn it off there."""
    with torch.no_grad():
        return work(*args, **kwargs)


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Until the event comes or the time is over. `asyncio.wait_for` may swallow a cancellation in Python 3.11."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
