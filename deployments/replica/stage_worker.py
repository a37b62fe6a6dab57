"""What the replicas of all stages do besides their work: announce, take tasks, report, stop, fail.

The event loop talks; model work runs in threads of the replica's own. A task holds its slot until
its thread has left, however the call ends: Serve frees its slot as soon as a call is cancelled, and
two jobs would share a device.

A replica whose device ran out of memory, or broke, is sick: it takes no more tasks and Serve replaces
it. One whose device should not be used for now takes none either, and stays.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from deployments.background import keep_running, wait_for
from deployments.errors import (
    DeviceBrokenError,
    InputUnusableError,
    PermanentError,
    RegistryUnavailableError,
    StoppedError,
    WorkerError,
)
from deployments.logs.ids import add_log_ids
from deployments.messages import (
    Directive,
    Event,
    Failed,
    Finished,
    InputUnusable,
    Parked,
    ReplicaInfo,
    Report,
    Stage,
    StageTask,
    Started,
)
from deployments.metrics.push import push_forever
from deployments.replica import serve_private
from deployments.replica.device_errors import DeviceFailure, device_failure
from deployments.replica.registry_link import WorkerRegistry
from deployments.replica.running_task import RunningTask, Timing, logger, without_grad
from deployments.tracing.context import TraceContext, context_of_job
from deployments.tracing.span import Attributes, Span
from deployments.tracing.tracer import TRACER

T = TypeVar("T")

SICKENING = frozenset(failure.value for failure in DeviceFailure)
"""Codes of failures after which the replica must be replaced."""

STRETCHES = {
    Stage.ENCODING: "encode",
    Stage.SAMPLING: "sample",
    Stage.DECODING: "decode",
    Stage.EMBEDDING: "embed",
}
"""What the span of a stage's task is called."""

Work = Callable[[RunningTask], Awaitable[Event | None]]
"""Does a task. Returns None when it is finished, or `Parked`; raises what `failure_of` understands."""


class StageWorker:
    """Runs the tasks of one replica and speaks for it to the registry. Made and used on the replica's loop.

    Args:
        info: what the replica announces while it takes tasks.
        registry: gets the announcements and the reports.
        device_problem: why no task should be taken now, for people; None if nothing speaks against it. Blocks for a
            moment, and is asked now and then, in a thread.
        is_draining: whether Serve wants this replica to leave.
        end_process: called when it is to leave and all its work is handed back.
        timing: how often it talks, and how long it waits.
        now_ns: a monotonic clock in nanoseconds.
    """

    def __init__(
        self,
        info: ReplicaInfo,
        registry: WorkerRegistry,
        *,
        device_problem: Callable[[], str | None] = lambda: None,
        is_draining: Callable[[], bool] = serve_private.is_draining,
        end_process: Callable[[], None] = serve_private.end_if_terminated,
        timing: Timing = Timing(),
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._info = info
        self._registry = registry
        self._is_draining = is_draining
        self._end_process = end_process
        self._timing = timing
        self._now_ns = now_ns
        self._executor = ThreadPoolExecutor(info.slots, thread_name_prefix=info.stage.value)
        self._slots = asyncio.Semaphore(info.slots)
        self._tasks: dict[str, RunningTask] = {}
        self._news = asyncio.Event()
        self._reservations = serve_private.Reservations()
        self._unhealthy: str | None = None  # why the replica must be replaced
        self._find_device_problem = device_problem
        self._device_problem = device_problem()
        self._leaving: str | None = None  # why it takes no more tasks
        self._loop = asyncio.get_running_loop()
        self._background = [
            self._loop.create_task(keep_running(run, f"{info.stage}: {run.__name__}", logger))
            for run in (
                self._announce_forever,
                self._report_forever,
                self._leave_when_draining,
                self._release_reservations_forever,
                self._watch_device_forever,
                self._push_metrics_forever,
            )
        ]

    @property
    def tasks(self) -> Mapping[str, RunningTask]:
        """The tasks whose calls are here, by lease: from before they have a slot until their end is reported."""
        return MappingProxyType(self._tasks)

    def check_health(self) -> None:
        """Raises RuntimeError if the replica must be replaced."""
        stalled = [running.task.job_id for running in self._at_work() if running.is_stalled]
        if stalled:
            self._unhealthy = f"no step for {self._timing.stall_s:g} s"
        if self._unhealthy:
            where = f" in {', '.join(stalled)}" if stalled else ""  # jobs are no business of /health
            raise RuntimeError(f"replica {self._info.replica} must be replaced: {self._unhealthy}{where}")

    def close(self) -> None:
        """Stop announcing and stop all tasks; does not wait for them. From any thread."""
        for running in list(self._tasks.values()):
            running.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if not self._loop.is_closed():
            for task in self._background:
                self._loop.call_soon_threadsafe(task.cancel)

    def warm_up(self, work: Callable[[], object]) -> None:
        """Run `work` in a model thread and wait: no job pays for what happens once in a thread."""
        self._executor.submit(without_grad, work).result()

    async def drain(self, reason: str) -> None:
        """Take no more tasks and park those that can be parked. Returns after an announcement."""
        self._leaving = reason
        for running in self._tasks.values():
            running.ask_to_park(reason)
        await self._announce(wait=False)

    async def run(self, task: StageTask, work: Work) -> None:
        """Do one task and report all of it; returns when its slot is free again.

        A failed task is reported and raises nothing.

        Raises:
            asyncio.CancelledError: the call was cancelled; the task was stopped and its thread has
                left.
        """
        running = RunningTask(task, self._executor, self._news, self._timing, self._now_ns)
        self._tasks[task.lease] = running
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
        """Report once and follow the answer; whether there was one."""
        answer = await self._answer(self._registry.report(Report(running.task.job_id, running.task.lease, event)))
        if answer is not None:
            _follow(answer, running)
        return answer is not None

    def _at_work(self) -> list[RunningTask]:
        return [running for running in self._tasks.values() if running.at_work]

    async def _run_in_slot(self, running: RunningTask, work: Work) -> None:
        task = running.task
        running.span = self._begin_span(task)

        def stretch() -> TraceContext:
            return context_of_job(task.job_id, running.span.traceparent or task.traceparent)

        add_log_ids(job=task.job_id, tenant=task.tenant, lease=task.lease, trace=stretch)
        try:
            async with self._slots:
                running.mark_active()
                await self._run_reporting(running, work)
        finally:
            running.span.end()
            if self._leaving:
                await asyncio.to_thread(TRACER.flush)
            self._tasks.pop(running.task.lease, None)

    def _begin_span(self, task: StageTask) -> Span:
        """The task's stretch on this replica."""
        about: Attributes = {
            "mochi_serve.job.id": task.job_id,
            "mochi_serve.lease": task.lease,
            "mochi_serve.replica": self._info.replica,
            "mochi_serve.device": self._info.device,
            "mochi_serve.attempt": task.attempt,
        }
        return TRACER.begin(STRETCHES[task.stage], context_of_job(task.job_id, task.traceparent), about)

    async def _run_reporting(self, running: RunningTask, work: Work) -> None:
        if running.stopped:
            return
        if reason := self._unhealthy or self._leaving or self._device_problem:
            await self._report_end(running, Failed("replica_unhealthy", f"the replica takes no tasks: {reason}", True))
            return
        await self.report_now(running, Started(self._info.replica, self._info.device))
        running.at_work = True
        end = await self._work_to_end(running, work)
        running.at_work = False
        if end is not None:
            await self._report_end(running, end)

    async def _work_to_end(self, running: RunningTask, work: Work) -> Event | None:
        """The event that ends the task; None if it was stopped, which needs no report."""
        stage = running.task.stage
        logger.info("%s begins, attempt %d", stage, running.task.attempt)
        try:
            running.raise_if_stopped()
            end = await work(running)
        except StoppedError:
            logger.info("%s stopped", stage)
            running.span.event("stopped")
            return None
        except InputUnusableError as error:
            logger.warning("%s goes back to the stage before: %s", stage, error)
            running.span.end("input_unusable")
            return InputUnusable(error.message)
        except Exception as error:
            failed = failure_of(error)
            running.span.end(failed.code)
            # A traceback only for what nobody foresaw, and of a device that is lost only the first.
            trace = None if isinstance(error, WorkerError) or self._unhealthy else error
            if failed.code in SICKENING:
                self._unhealthy = failed.message
                await self.drain(failed.message)
            logger.error("%s failed, %s: %s", stage, failed.code, failed.message, exc_info=trace)
            return failed
        if isinstance(end, Parked):
            running.span.event("parked", {"mochi_serve.step": end.step, "mochi_serve.reason": end.reason})
        logger.info("%s %s: %s", stage, "done" if end is None else "parked", running.clock.seconds)
        return end or Finished(dict(running.clock.seconds), running.device_s, running.passes)

    async def _report_forever(self) -> None:
        """One call for all tasks with new progress, or whose last report is a heartbeat ago."""
        while True:
            await wait_for(self._news, self._timing.heartbeat_s)
            self._news.clear()
            if due := [running for running in self._at_work() if running.is_due]:
                await self._report_all(due)
                await asyncio.sleep(self._timing.report_every_s)

    async def _report_all(self, due: list[RunningTask]) -> None:
        started = Started(self._info.replica, self._info.device)
        reports = [Report(r.task.job_id, r.task.lease, r.take_progress() or started) for r in due]
        answers = await self._answer(self._registry.report_all(reports))
        for running, answer in zip(due, answers or (), strict=False):
            _follow(answer, running)

    async def _report_end(self, running: RunningTask, event: Event) -> None:
        """Report until the registry answers: while it is away there is no work for the slot."""
        while not await self.report_now(running, event) and not running.stopped:
            await asyncio.sleep(self._timing.end_retry_s)

    async def _announce_forever(self) -> None:
        """The registry holds the call open and answers at once when it has a directive for this replica."""
        while True:
            if not await self._announce(wait=True):
                await asyncio.sleep(self._timing.announce_retry_s)

    async def _announce(self, wait: bool) -> bool:
        """Announce this replica once, without slots if it takes no tasks; whether the registry answered."""
        problem = self._unhealthy or self._device_problem
        info = replace(self._info, slots=0, problem=problem) if problem or self._leaving else self._info
        directives = await self._answer(self._registry.announce(info, wait))
        for lease, directive in (directives or {}).items():
            if running := self._tasks.get(lease):
                _follow(directive, running)
        return directives is not None

    async def _leave_when_draining(self) -> None:
        """Serve informs user code of a shutdown only when all its calls have ended; so look."""
        while not self._is_draining():
            await asyncio.sleep(self._timing.drain_poll_s)
        logger.info("%s: this replica is to leave; what it can park goes back", self._info.stage)
        await self.drain("the replica was told to leave")
        while self._tasks:
            await asyncio.sleep(self._timing.drain_poll_s)
        self._end_process()

    async def _release_reservations_forever(self) -> None:
        """Free the slots that a registry reserved before it was killed."""
        while True:
            if count := await self._reservations.release_stale():
                logger.warning("%s: %d slots were reserved and not used; they are open again", self._info.stage, count)
            await asyncio.sleep(self._timing.reservations_every_s)

    async def _watch_device_forever(self) -> None:
        """Tell the registry at once when the device should not be used any more, or may be again."""
        while True:
            await asyncio.sleep(self._timing.device_every_s)
            problem = await asyncio.to_thread(self._find_device_problem)
            if problem == self._device_problem:
                continue
            self._device_problem = problem
            if problem is None:
                logger.info("%s: the device may be used again", self._info.stage)
            else:
                logger.error("%s: no tasks are taken: %s", self._info.stage, problem)
            await self._announce(wait=False)

    async def _push_metrics_forever(self) -> None:
        """Tell the registry what this process counts."""
        await push_forever(self._registry.push_metrics, self._info.stage, every_s=self._timing.metrics_every_s)

    async def _answer(self, call: Awaitable[T]) -> T | None:
        """The registry's answer, None if there was none: the work never fails with the registry."""
        try:
            return await call
        except RegistryUnavailableError as error:
            logger.warning("the registry was not reached, the next call follows: %s", error)
        except Exception:
            logger.exception("a call of the registry failed, the next one follows")
        return None


def _follow(directive: Directive, running: RunningTask) -> None:
    if directive == Directive.STOP:
        running.stop()
    elif directive == Directive.PARK:
        running.ask_to_park("the registry asked for it")


def failure_of(error: Exception) -> Failed:
    """What an exception of the work means to the registry; what clients are not told goes to the log."""
    if isinstance(error, WorkerError):
        if error.detail:
            logger.warning("the work is given up: %s", error)
        return Failed(error.code, error.message, transient=not isinstance(error, PermanentError))
    match device_failure(error):
        case DeviceFailure.OUT_OF_MEMORY as code:
            return Failed(code.value, "the device ran out of memory", transient=True)
        case DeviceFailure.BROKEN as code:
            return Failed(code.value, DeviceBrokenError().message, transient=True)
    what = "the worker failed in a way that nobody foresaw; its operator finds the reason in the log"
    return Failed("internal_error", what, transient=True)
