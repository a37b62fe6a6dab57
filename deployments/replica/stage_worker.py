"""What every stage's replica does besides its own work: announce, take a task, report, stop, fail well.

The event loop talks; model work runs in threads of the replica's own. A task holds its slot until its thread has
left, however the call ends: Serve frees its slot as soon as a call is cancelled, and two jobs would share a device.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch
from ray.exceptions import RayError

from deployments.background import wait_for
from deployments.errors import PermanentError, RegistryUnavailableError, StoppedError, WorkerError
from deployments.messages import Directive, Event, Failed, Finished, ReplicaInfo, Report, StageTask, Started
from deployments.replica.registry_link import WorkerRegistry
from deployments.replica.running_task import RunningTask, current_job, logger, without_grad
from deployments.replica.serve_private import Reservations, end_if_terminated, is_draining

ANNOUNCE_EVERY_S = 2.0
DRAIN_POLL_S = 0.25
RESERVATIONS_EVERY_S = 5.0
REPORT_INTERVAL_S = 0.2
HEARTBEAT_S = 5.0
STALL_S = 900.0
RETRY_PAUSE_S = 1.0

T = TypeVar("T")

Work = Callable[[RunningTask], Awaitable[Event | None]]


class StageWorker:
    """Runs the tasks of one replica and speaks for it to the registry. Made and used on the replica's loop.

    Args:
        draining: tells that Serve wants this replica to leave.

    `_held` are all tasks whose calls are here, from before they have a slot until their end was told: a directive may
    come at any time. `_running`, those whose work goes on: they have progress and heartbeats.
    """

    def __init__(
        self,
        info: ReplicaInfo,
        registry: WorkerRegistry,
        draining: Callable[[], bool] = is_draining,
    ) -> None:
        self._info = info
        self._registry = registry
        self._draining = draining
        self._executor = ThreadPoolExecutor(info.slots, thread_name_prefix=info.stage.value)
        self._slots = asyncio.Semaphore(info.slots)
        self._held: dict[str, RunningTask] = {}
        self._running: dict[str, RunningTask] = {}
        self._news = asyncio.Event()
        self._sick: str | None = None
        self._leaving: str | None = None
        self._loop = asyncio.get_running_loop()
        forever = (self._announce_forever(), self._report_forever(), self._watch_draining(), self._watch_reservations())
        self._background = [self._loop.create_task(part) for part in forever]

    def check_health(self) -> None:
        """Raises RuntimeError if the replica must be replaced."""
        stalled = [r.task.job_id for r in self._running.values() if _stalled(r)]
        if stalled:
            self._sick = f"no step for {STALL_S:g} s in {', '.join(stalled)}"
        if self._sick:
            raise RuntimeError(f"replica {self._info.replica} must be replaced: {self._sick}")

    def close(self) -> None:
        """Stop announcing and tell what still runs to stop; does not wait. From any thread."""
        for running in list(self._held.values()):
            running.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if not self._loop.is_closed():
            for task in self._background:
                self._loop.call_soon_threadsafe(task.cancel)

    def warm_up(self, work: Callable[[], object]) -> None:
        """Run `work` in a model thread and wait, so that no job pays for what happens only once in a thread."""
        self._executor.submit(without_grad, work).result()

    async def leave(self, reason: str) -> None:
        """Take no more tasks and let go of those that can be parked. Returns when the registry was told."""
        self._leaving = reason
        for running in self._held.values():
            running.ask_to_park(reason)
        await self._announce(wait=False)

    async def run(self, task: StageTask, work: Work) -> None:
        """Do one task and report all of it; returns when its slot is free again, never raises for a failed task.

        Raises:
            asyncio.CancelledError: the call was cancelled; the task was stopped and its thread has left.
        """
        running = RunningTask(task, self._executor, self._news)
        self._held[task.lease] = running
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

    async def report_now(self, running: RunningTask, event: Event) -> bool:
        """Report once and heed the answer; whether the registry heard."""
        answer = await self._answer(self._registry.report(Report(running.task.job_id, running.task.lease, event)))
        if answer is not None:
            _heed(running, answer)
        return answer is not None

    async def _run_in_slot(self, running: RunningTask, work: Work) -> None:
        current_job.set(running.task.job_id)
        await self._slots.acquire()
        running.mark_active()
        try:
            await self._run_reporting(running, work)
        finally:
            self._running.pop(running.task.lease, None)
            self._held.pop(running.task.lease, None)
            self._slots.release()

    async def _run_reporting(self, running: RunningTask, work: Work) -> None:
        if running.stopped:
            return
        if gone := self._sick or self._leaving:
            await self._report_end(running, Failed("replica_unhealthy", f"the replica leaves: {gone}", True))
            return
        await self.report_now(running, Started(self._info.replica, self._info.device))
        self._running[running.task.lease] = running
        end = await self._work_to_end(running, work)
        self._running.pop(running.task.lease, None)
        if end is not None:
            await self._report_end(running, end)

    async def _work_to_end(self, running: RunningTask, work: Work) -> Event | None:
        """The event that ends the task; None if it was stopped, which needs no report."""
        task = running.task
        logger.info("%s begins, attempt %d", task.stage, task.attempt)
        try:
            running.raise_if_stopped()
            end = await work(running)
        except StoppedError:
            logger.info("%s stopped", task.stage)
            return None
        except Exception as error:
            failed = failure_of(error)
            if failed.code == "out_of_memory":
                self._sick = failed.message
                await self.leave(failed.message)
            _log_failure(task, failed, error)
            return failed
        logger.info("%s %s: %s", task.stage, "done" if end is None else "parked", running.clock.seconds)
        return end or Finished(dict(running.clock.seconds), running.device_s)

    async def _report_forever(self) -> None:
        """One call for all tasks with news, a few times a second; a heartbeat for those whose step is long."""
        while True:
            await wait_for(self._news, HEARTBEAT_S)
            self._news.clear()
            if due := [running for running in self._running.values() if _is_due(running)]:
                await self._report_all(due)
                await asyncio.sleep(REPORT_INTERVAL_S)

    async def _report_all(self, due: list[RunningTask]) -> None:
        started = Started(self._info.replica, self._info.device)
        reports = [Report(r.task.job_id, r.task.lease, r.take_progress() or started) for r in due]
        answers = await self._answer(self._registry.report_all(reports))
        for running, answer in zip(due, answers or (), strict=False):
            _heed(running, answer)

    async def _report_end(self, running: RunningTask, event: Event) -> None:
        """Report until the registry has heard it: while it is away there is no other work for the slot either."""
        while not await self.report_now(running, event) and not running.stopped:
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _announce_forever(self) -> None:
        """The registry holds the call open and answers at once when it has a directive for this replica."""
        while True:
            if not await self._announce(wait=True):
                await asyncio.sleep(ANNOUNCE_EVERY_S)

    async def _announce(self, wait: bool) -> bool:
        """Tell the registry of this replica; one that leaves has no slots. Whether the registry heard."""
        info = replace(self._info, slots=0) if self._sick or self._leaving else self._info
        directives = await self._answer(self._registry.announce(info, wait))
        for lease, directive in (directives or {}).items():
            if running := self._held.get(lease):
                _heed(running, directive)
        return directives is not None

    async def _watch_draining(self) -> None:
        """Serve tells user code of a shutdown only when all its calls have ended; so look."""
        while not self._draining():
            await asyncio.sleep(DRAIN_POLL_S)
        logger.info("%s: this replica is to leave; what it can park goes back", self._info.stage)
        await self.leave("the replica was told to leave")
        while self._held:
            await asyncio.sleep(DRAIN_POLL_S)
        end_if_terminated()

    async def _watch_reservations(self) -> None:
        """What a registry reserved before it was killed is open to the next one."""
        reservations, stage = Reservations(), self._info.stage
        while True:
            await asyncio.sleep(RESERVATIONS_EVERY_S)
            try:
                if count := await reservations.release_stale():
                    logger.warning("%s: %d slots were reserved and not used; they are open again", stage, count)
            except RayError:
                logger.exception("%s: reserved slots were not given back, the next round follows", stage)

    async def _answer(self, call: Awaitable[T]) -> T | None:
        """The registry's answer, None if there was none. The work never fails because the registry does."""
        try:
            return await call
        except RegistryUnavailableError as error:
            logger.warning("the registry was not reached, the next call follows: %s", error)
        except Exception:
            logger.exception("a call of the registry failed, the next one follows")
        return None


def _heed(running: RunningTask, directive: Directive) -> None:
    if directive == Directive.STOP:
        running.stop()
    elif directive == Directive.PARK:
        running.ask_to_park("the registry asked for it")


def _is_due(running: RunningTask) -> bool:
    """A stalled task has no heartbeat: its lease is to lapse."""
    return running.has_new_progress or (time.monotonic() - running.reported_at >= HEARTBEAT_S and not _stalled(running))


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
    return time.monotonic() - running.active_at > STALL_S
