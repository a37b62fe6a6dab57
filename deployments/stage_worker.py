"""What every stage's replica does besides its own work: announce, take a task, report, stop, fail well.

The event loop talks; model work runs in threads of the replica's own. A task holds its slot until its thread has
left, however the call ends: Serve frees its slot as soon as a call is cancelled, and two jobs would share a device.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from deployments.connections import Link
from deployments.errors import PermanentError, RegistryUnavailableError, StoppedError, WorkerError
from deployments.messages import Directive, Event, Failed, Finished, ReplicaInfo, StageTask, Started
from deployments.running_task import RunningTask, current_job, logger, without_grad

ANNOUNCE_EVERY_S = 2.0
REPORT_INTERVAL_S = 0.2
HEARTBEAT_S = 5.0
STALL_S = 900.0
LEASE_LAPSED_S = 30.0
RETRY_PAUSE_S = 1.0

Work = Callable[[RunningTask], Awaitable[None]]


class StageWorker:
    """Runs the tasks of one replica and speaks for it to the registry. Made and used on the replica's loop."""

    def __init__(self, info: ReplicaInfo, link: Link, lease_lapsed_s: float = LEASE_LAPSED_S) -> None:
        self._info = info
        self._link = link
        self._lease_lapsed_s = lease_lapsed_s
        self._executor = ThreadPoolExecutor(info.slots, thread_name_prefix=info.stage.value)
        self._slots = asyncio.Semaphore(info.slots)
        self._running: set[RunningTask] = set()
        self._sick: str | None = None
        self._loop = asyncio.get_running_loop()
        self._announcing = self._loop.create_task(self._announce_forever())

    def check_health(self) -> None:
        """Raises RuntimeError if the replica must be replaced."""
        stalled = [r.task.job_id for r in self._running if _stalled(r)]
        if stalled:
            self._sick = f"no step for {STALL_S:g} s in {', '.join(stalled)}"
        if self._sick:
            raise RuntimeError(f"replica {self._info.replica} must be replaced: {self._sick}")

    def close(self) -> None:
        """Stop announcing and tell what still runs to stop; does not wait. From any thread."""
        for running in list(self._running):
            running.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._announcing.cancel)

    def warm_up(self, work: Callable[[], object]) -> None:
        """Run `work` in a model thread and wait, so that no job pays for what happens only once in a thread."""
        self._executor.submit(without_grad, work).result()

    async def run(self, task: StageTask, work: Work) -> None:
        """Do one task and report all of it; returns when its slot is free again, never raises for a failed task.

        Raises:
            asyncio.CancelledError: the call was cancelled; the task was stopped and its thread has left.
        """
        running = RunningTask(task, self._executor)
        inner = self._loop.create_task(self._run_in_slot(running, work))
        cancelled: asyncio.CancelledError | None = None
        while not inner.done():
            try:
                await asyncio.shield(inner)
            except asyncio.CancelledError as error:
                cancelled = error
                running.stop()
        if cancelled:
            raise cancelled

    async def _run_in_slot(self, running: RunningTask, work: Work) -> None:
        current_job.set(running.task.job_id)
        await self._slots.acquire()
        running.moved()
        self._running.add(running)
        try:
            await self._run_reporting(running, work)
        finally:
            self._running.discard(running)
            self._slots.release()

    async def _run_reporting(self, running: RunningTask, work: Work) -> None:
        if running.stopped:
            return
        if self._sick:
            await self._report_end(running, Failed("replica_unhealthy", f"the replica leaves: {self._sick}", True))
            return
        await self._report(running, Started(self._info.replica, self._info.device))
        pump = self._loop.create_task(self._report_progress(running))
        try:
            end: Event | None = await self._work_to_end(running, work)
        finally:
            await _cancel(pump)
        if end is not None:
            await self._report_end(running, end)

    async def _work_to_end(self, running: RunningTask, work: Work) -> Event | None:
        """The event that ends the task; None if it was stopped, which needs no report."""
        task = running.task
        logger.info("%s begins, attempt %d", task.stage, task.attempt)
        try:
            running.check()
            await work(running)
        except StoppedError:
            logger.info("%s stopped", task.stage)
            return None
        except Exception as error:
            failed = failure_of(error)
            if failed.code == "out_of_memory":
                await self._fall_sick(failed.message)
            _log_failure(task, failed, error)
            return failed
        logger.info("%s done: %s", task.stage, running.clock.seconds)
        return Finished(dict(running.clock.seconds))

    async def _fall_sick(self, reason: str) -> None:
        """Take no more tasks: tell the registry before it hears of the failure and thinks the slot free."""
        self._sick = reason
        await self._announce()

    async def _report_progress(self, running: RunningTask) -> None:
        """Send the latest event as it changes, and as a heartbeat while a step is long, but not a stalled one."""
        while not _stalled(running):
            with_news = await _wait(running.changed, HEARTBEAT_S)
            running.changed.clear()
            await self._report(running, running.latest or Started(self._info.replica, self._info.device))
            if with_news:
                await asyncio.sleep(REPORT_INTERVAL_S)

    async def _report(self, running: RunningTask, event: Event) -> bool:
        """Report once and heed the answer; whether there was one."""
        heard, answer = await self._tell("report", running.task.job_id, running.task.lease, event)
        if answer == Directive.STOP:
            running.stop()
        return heard

    async def _report_end(self, running: RunningTask, event: Event) -> None:
        """Report until the registry has heard it or the lease has surely lapsed."""
        deadline = time.monotonic() + self._lease_lapsed_s
        while not await self._report(running, event):
            if time.monotonic() + RETRY_PAUSE_S >= deadline:
                logger.error("gave up to report %s: the lease has lapsed", type(event).__name__)
                return
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _announce_forever(self) -> None:
        while True:
            await self._announce()
            await asyncio.sleep(ANNOUNCE_EVERY_S)

    async def _announce(self) -> None:
        """Tell the registry of this replica; one that must be replaced has no slots."""
        await self._tell("announce", replace(self._info, slots=0) if self._sick else self._info)

    async def _tell(self, method: str, *args: object) -> tuple[bool, Any]:
        """Whether the registry heard, and its answer. The work never fails because the registry does."""
        try:
            return True, await self._link.call(method, *args)
        except RegistryUnavailableError as error:
            logger.warning("%s lost, the next one follows: %s", method, error)
        except Exception:
            logger.exception("%s failed, the next one follows", method)
        return False, None


def failure_of(error: Exception) -> Failed:
    """What an exception of the work means to the registry: pure."""
    if isinstance(error, WorkerError):
        return Failed(error.code, error.message, transient=not isinstance(error, PermanentError))
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Failed("out_of_memory", f"the device ran out of memory: {error}", transient=True)
    return Failed("internal_error", f"{type(error).__name__}: {error}", transient=True)


def _log_failure(task: StageTask, failed: Failed, error: Exception) -> None:
    """A traceback only for what nobody foresaw."""
    foreseen = isinstance(error, WorkerError)
    logger.error("%s failed, %s: %s", task.stage, failed.code, failed.message, exc_info=None if foreseen else error)


def _stalled(running: RunningTask) -> bool:
    return time.monotonic() - running.moved_at > STALL_S


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event came in time."""
    try:  # not wait_for: before Python 3.12 it loses a cancellation that comes together with the event
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
