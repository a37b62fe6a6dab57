"""Reports, stops, failures, slots and health of a replica, with a registry in memory."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch

from deployments.errors import PermanentError, StorageRefusedError, StorageUnavailableError, TransientError
from deployments.messages import (
    Directive,
    Event,
    Failed,
    Finished,
    Parked,
    Progress,
    ReplicaInfo,
    Report,
    Stage,
    Started,
)
from deployments.replica.running_task import RunningTask, Timing
from deployments.replica.stage_worker import StageWorker, failure_of
from deployments.tracing.context import TraceContext
from tests.support.logs import begun_log
from tests.support.workers.fakes import Clock, ReportLog, captured, task

STARTED = Started("replica-1", "cpu")


@asynccontextmanager
async def replica(
    log: ReportLog,
    slots: int = 1,
    is_draining: Callable[[], bool] = lambda: False,
    end_process: Callable[[], None] = lambda: None,
    timing: Timing = Timing(),
    now_ns: Callable[[], int] = time.perf_counter_ns,
    device_problem: Callable[[], str | None] = lambda: None,
) -> AsyncIterator[StageWorker]:
    info = ReplicaInfo("replica-1", Stage.SAMPLING, slots, "cpu", "m")
    worker = StageWorker(
        info,
        log,
        device_problem=device_problem,
        is_draining=is_draining,
        end_process=end_process,
        timing=timing,
        now_ns=now_ns,
    )
    try:
        yield worker
    finally:
        worker.close()
        await asyncio.sleep(0)


def steps(count: int) -> Callable[[RunningTask], Awaitable[None]]:
    """Work that takes `count` steps in the thread."""

    def loop(running: RunningTask) -> None:
        for done in range(1, count + 1):
            running.progress(done, count)

    async def work(running: RunningTask) -> None:
        await running.in_thread(loop, running)
        running.clock.lap("denoise")

    return work


def endless(entered: threading.Event, left: threading.Event) -> Callable[[RunningTask], Awaitable[None]]:
    """Work that only a stop ends, and that takes its time to leave."""

    def loop(running: RunningTask) -> None:
        entered.set()
        try:
            while True:
                running.progress(1, 2)
                threading.Event().wait(0.01)
        finally:
            threading.Event().wait(0.05)
            left.set()

    async def work(running: RunningTask) -> None:
        await running.in_thread(loop, running)

    return work


def parking(entered: threading.Event) -> Callable[[RunningTask], Awaitable[Event | None]]:
    """Work that goes on until it is asked to park."""

    def loop(running: RunningTask) -> Event | None:
        entered.set()
        while running.park_reason is None:
            running.progress(1, 2)
            threading.Event().wait(0.01)
        return Parked(1, running.park_reason)

    async def work(running: RunningTask) -> Event | None:
        return await running.in_thread(loop, running)

    return work


def failing(error: Exception) -> Callable[[RunningTask], Awaitable[None]]:
    def fail() -> None:
        raise error

    async def work(running: RunningTask) -> None:
        await running.in_thread(fail)

    return work


async def test_reports_started_then_finished_with_seconds() -> None:
    log = ReportLog()
    async with replica(log) as worker:
        await worker.run(task(Stage.SAMPLING), steps(3))
    assert log.ends[0] == STARTED
    (finished,) = log.ends[1:]
    assert isinstance(finished, Finished)
    assert set(finished.seconds) == {"denoise"}
    assert {(report.job_id, report.lease) for report in log.reports} == {("video_1", "lease_1")}


async def test_progress_is_coalesced_and_the_latest_wins() -> None:
    log = ReportLog()
    held = threading.Event()

    def loop(running: RunningTask) -> None:
        for done in range(1, 1001):
            running.progress(done, 1000)
        held.wait()

    async def work(running: RunningTask) -> None:
        await running.in_thread(loop, running)

    async with replica(log) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), work))
        while not any(isinstance(event, Progress) and event.done == 1000 for event in log.events):
            await asyncio.sleep(0.01)
        held.set()
        await call
    assert sum(isinstance(event, Progress) for event in log.events) <= 5


async def test_a_stop_answer_ends_the_thread_at_its_next_step() -> None:
    log = ReportLog(stop_at=lambda event: isinstance(event, Progress))
    entered, left = threading.Event(), threading.Event()
    async with replica(log) as worker:
        await worker.run(task(Stage.SAMPLING), endless(entered, left))
    assert left.is_set()
    assert log.ends == [STARTED]


async def test_a_lapsed_lease_at_the_start_does_no_work() -> None:
    log = ReportLog(stop_at=lambda event: isinstance(event, Started))
    entered, left = threading.Event(), threading.Event()
    async with replica(log) as worker:
        await worker.run(task(Stage.SAMPLING), endless(entered, left))
    assert not entered.is_set()


async def test_a_cancelled_call_holds_its_slot_until_the_thread_has_left() -> None:
    log = ReportLog()
    entered, left = threading.Event(), threading.Event()
    async with replica(log) as worker:
        first = asyncio.create_task(worker.run(task(Stage.SAMPLING), endless(entered, left)))
        await asyncio.to_thread(entered.wait)
        first.cancel()
        await asyncio.sleep(0)
        first.cancel()
        left_before_second: list[bool] = []

        async def second(running: RunningTask) -> None:
            left_before_second.append(left.is_set())

        await worker.run(task(Stage.SAMPLING), second)
        with pytest.raises(asyncio.CancelledError):
            await first
    assert left_before_second == [True]
    assert [type(event) for event in log.ends] == [Started, Started, Finished]


async def test_a_call_cancelled_while_it_waits_for_the_slot_never_starts() -> None:
    log = ReportLog()
    entered, left = threading.Event(), threading.Event()
    never = threading.Event()
    async with replica(log) as worker:
        first = asyncio.create_task(worker.run(task(Stage.SAMPLING), endless(entered, left)))
        await asyncio.to_thread(entered.wait)
        second = asyncio.create_task(worker.run(task(Stage.SAMPLING), endless(never, threading.Event())))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        assert all(isinstance(r, BaseException) for r in await asyncio.gather(first, second, return_exceptions=True))
    assert not never.is_set()
    assert log.ends == [STARTED]


async def test_slots_run_at_once() -> None:
    both = threading.Barrier(2)

    async def meet(running: RunningTask) -> None:
        await running.in_thread(both.wait)

    async with replica(ReportLog(), slots=2) as worker:
        await asyncio.gather(*(worker.run(task(Stage.ENCODING), meet) for _ in range(2)))


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (PermanentError("prompt_too_long", "shorten it"), Failed("prompt_too_long", "shorten it", False)),
        (TransientError("mp4_failed", "disk full"), Failed("mp4_failed", "disk full", True)),
        (
            StorageUnavailableError("http://10.0.0.7:9000 is away"),
            Failed("storage_unavailable", "the object store does not answer", True),
        ),
        (
            StorageRefusedError("bucket secret-plans"),
            Failed(
                "storage_refused",
                "the object store refuses this server; its operator finds the reason in the log",
                True,
            ),
        ),
        (TransientError("mp4_failed", "no mp4", "/srv/x: no space"), Failed("mp4_failed", "no mp4", True)),
        (
            FileNotFoundError(2, "No such file", "/srv/secret-plans"),
            Failed(
                "internal_error",
                "the worker failed in a way that nobody foresaw; its operator finds the reason in the log",
                True,
            ),
        ),
        (MemoryError("4 GB of GPU 3"), Failed("out_of_memory", "the device ran out of memory", True)),
        (
            torch.AcceleratorError("CUDA error: unspecified launch failure"),
            Failed("device_broken", "the device of the replica is broken", True),
        ),
    ],
)
def test_what_errors_mean(error: Exception, failed: Failed) -> None:
    assert failure_of(error) == failed


async def test_a_failure_is_reported_and_the_next_task_runs() -> None:
    log = ReportLog()
    async with replica(log) as worker:
        await worker.run(task(Stage.SAMPLING), failing(PermanentError("bad", "why")))
        await worker.run(task(Stage.SAMPLING), steps(1))
        worker.check_health()
    assert log.ends[1] == Failed("bad", "why", transient=False)
    assert isinstance(log.ends[3], Finished)


async def test_unforeseen_errors_are_logged_with_traceback_and_job() -> None:
    with begun_log("sampler") as lines:
        async with replica(ReportLog()) as worker:
            await worker.run(task(Stage.SAMPLING), failing(ZeroDivisionError("x / 0")))
    (line,) = [line for line in lines() if line["levelname"] == "ERROR"]
    assert line["message"].startswith("sampling failed, internal_error") and line["job"] == "video_1"
    assert "ZeroDivisionError: x / 0" in line["exc_text"]


async def test_each_line_of_a_task_has_its_ids_from_its_thread_too() -> None:
    trace = TraceContext("1" * 32, "2" * 16, False)

    async def work(running: RunningTask) -> None:
        await running.in_thread(logging.getLogger("ray.serve").info, "in the thread")

    tasks = [
        replace(task(Stage.SAMPLING), job_id=f"video_{n}", lease=f"l{n}", tenant=f"t{n}", traceparent=trace.traceparent)
        for n in range(3)
    ]
    with begun_log("sampler") as lines:
        async with replica(ReportLog(), slots=2) as worker:
            await asyncio.gather(*(worker.run(each, work) for each in tasks))
    for each in tasks:
        own = [line for line in lines() if line.get("job") == each.job_id]
        assert [line["message"].split()[0] for line in own] == ["sampling", "in", "sampling"]
        assert {(line["lease"], line["tenant"], line["stage"]) for line in own} == {
            (each.lease, each.tenant, "sampler")
        }
        assert {(line["trace_id"], line["span_id"]) for line in own} == {("1" * 32, "2" * 16)}
    assert {line["job"] for line in lines()} == {each.job_id for each in tasks}


async def test_out_of_memory_takes_the_replica_out_of_service() -> None:
    log = ReportLog()
    async with replica(log) as worker:
        await worker.run(task(Stage.SAMPLING), failing(torch.OutOfMemoryError("tried 3 GiB")))
        with pytest.raises(RuntimeError, match="must be replaced: .* ran out of memory"):
            worker.check_health()
        assert log.announced[-1].slots == 0
        await worker.run(task(Stage.SAMPLING), steps(1))
    ends = [event for event in log.ends if isinstance(event, Failed)]
    assert [(e.code, e.transient) for e in ends] == [("out_of_memory", True), ("replica_unhealthy", True)]


ILLEGAL_ACCESS = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
ALLOC_FAILED = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize("error", [ILLEGAL_ACCESS, ALLOC_FAILED])
async def test_a_device_that_breaks_takes_the_replica_out_of_service(error: Exception) -> None:
    log = ReportLog()
    async with replica(log) as worker:
        await worker.run(task(Stage.SAMPLING), failing(error))
        with pytest.raises(RuntimeError, match="must be replaced: the device of the replica is broken"):
            worker.check_health()
        assert (log.announced[-1].slots, log.announced[-1].problem) == (0, "the device of the replica is broken")
        await worker.run(task(Stage.SAMPLING), steps(1))
    ends = [event for event in log.ends if isinstance(event, Failed)]
    assert [(e.code, e.transient) for e in ends] == [("device_broken", True), ("replica_unhealthy", True)]


async def test_only_the_first_error_of_a_broken_device_is_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    """Tasks in other threads fail one after the other; each may have been the cause."""
    together = threading.Barrier(3)

    def fail() -> None:
        together.wait()
        raise ILLEGAL_ACCESS

    async def work(running: RunningTask) -> None:
        await running.in_thread(fail)

    log = ReportLog()
    with captured(caplog):
        async with replica(log, slots=3) as worker:
            await asyncio.gather(*(worker.run(task(Stage.ENCODING), work) for _ in range(3)))
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [bool(record.exc_info) for record in errors] == [True, False, False]
    assert [event.code for event in log.ends if isinstance(event, Failed)] == ["device_broken"] * 3


async def test_a_device_that_should_not_be_used_takes_no_tasks_and_the_replica_stays() -> None:
    log, problems = ReportLog(), ["Xid 79"]
    async with replica(log, device_problem=lambda: problems[-1]) as worker:
        await worker.run(task(Stage.SAMPLING), steps(1))
        while not log.announced:
            await asyncio.sleep(0.005)
        worker.check_health()
    assert (log.announced[0].slots, log.announced[0].problem) == (0, "Xid 79")
    (refused,) = log.ends
    assert isinstance(refused, Failed) and (refused.code, refused.transient) == ("replica_unhealthy", True)
    assert "Xid 79" in refused.message


async def test_what_is_wrong_with_a_device_is_told_when_it_begins_and_when_it_ends() -> None:
    log = ReportLog()
    problems: list[str | None] = [None]
    timing = Timing(device_every_s=0.005, announce_retry_s=1000)
    async with replica(log, device_problem=lambda: problems[-1], timing=timing) as worker:

        async def heard(problem: str | None) -> None:
            problems.append(problem)
            while not log.announced or log.announced[-1].problem != problem:
                await asyncio.sleep(0.005)

        entered, left = threading.Event(), threading.Event()
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), endless(entered, left)))
        await asyncio.to_thread(entered.wait)
        await heard("others hold 97%")
        assert log.announced[-1].slots == 0
        assert not call.done(), "what is there goes on"
        call.cancel()
        await asyncio.wait([call])
        await heard(None)
        assert log.announced[-1].slots == 1
        await worker.run(task(Stage.SAMPLING), steps(1))
    assert isinstance(log.ends[-1], Finished)


async def test_the_registry_knows_of_no_slots_before_it_hears_of_the_failure() -> None:
    slots_when_failed: list[int] = []

    def note(event: Event) -> bool:
        if isinstance(event, Failed):
            slots_when_failed.append(log.announced[-1].slots)
        return False

    log = ReportLog(stop_at=note)
    async with replica(log) as worker:
        await worker.run(task(Stage.SAMPLING), failing(torch.OutOfMemoryError("tried 3 GiB")))
    assert slots_when_failed == [0]


async def test_the_end_is_reported_again_until_the_registry_is_back() -> None:
    log = ReportLog(unreachable=4)
    async with replica(log, timing=Timing(end_retry_s=0.001)) as worker:
        await worker.run(task(Stage.SAMPLING), steps(2))
    assert isinstance(log.events[-1], Finished)


async def test_the_end_is_kept_while_the_registry_is_away_and_given_up_with_the_replica() -> None:
    log = ReportLog(unreachable=1_000_000)
    async with replica(log, timing=Timing(end_retry_s=0.001)) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), steps(2)))
        while log.unreachable > 1_000_000 - 50:
            await asyncio.sleep(0.001)
        assert not call.done()
        worker.check_health()
        worker.close()
        await call
    assert log.events == []


async def test_a_long_step_keeps_its_lease_by_heartbeats() -> None:
    held = threading.Event()
    log = ReportLog()

    async def work(running: RunningTask) -> None:
        await running.in_thread(held.wait)

    async with replica(log, timing=Timing(heartbeat_s=0.01)) as worker:
        call = asyncio.create_task(worker.run(task(Stage.ENCODING), work))
        while log.events.count(STARTED) < 4:
            await asyncio.sleep(0.005)
        held.set()
        await call


async def test_a_stalled_task_loses_its_lease_and_its_replica() -> None:
    timing, clock = Timing(heartbeat_s=0.01), Clock()
    held, entered = threading.Event(), threading.Event()
    log = ReportLog()

    def hang() -> None:
        entered.set()
        held.wait()

    async def work(running: RunningTask) -> None:
        await running.in_thread(hang)

    async with replica(log, timing=timing, now_ns=clock) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), work))
        await asyncio.to_thread(entered.wait)
        clock.advance(int(timing.heartbeat_s * 1e9))
        while log.events.count(STARTED) < 2:
            await asyncio.sleep(0.005)
        worker.check_health()
        clock.advance(int(timing.stall_s * 1e9))
        with pytest.raises(RuntimeError, match="no step for 900 s in video_1"):
            worker.check_health()
        heard = len(log.events)
        await asyncio.sleep(0.05)
        assert len(log.events) == heard
        held.set()
        await call


async def test_announces_itself_again_and_again() -> None:
    log = ReportLog()
    async with replica(log, slots=3, timing=Timing(announce_retry_s=0.01)):
        while len(log.announced) < 3:
            await asyncio.sleep(0.005)
    assert log.announced[0] == ReplicaInfo("replica-1", Stage.SAMPLING, 3, "cpu", "m")
    await asyncio.sleep(0.03)
    heard = len(log.announced)
    await asyncio.sleep(0.03)
    assert len(log.announced) == heard


async def test_a_request_to_park_comes_with_the_announcement() -> None:
    log, entered = ReportLog(), threading.Event()
    async with replica(log) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), parking(entered)))
        await asyncio.to_thread(entered.wait)
        log.mailbox.post("replica-1", "lease_1", Directive.PARK)
        await call
        await worker.run(task(Stage.SAMPLING), steps(1))
    assert log.ends[1] == Parked(1, "the registry asked for it")
    assert isinstance(log.ends[-1], Finished)


async def test_a_stop_comes_with_the_announcement() -> None:
    log, entered, left = ReportLog(), threading.Event(), threading.Event()
    async with replica(log) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), endless(entered, left)))
        await asyncio.to_thread(entered.wait)
        log.mailbox.post("replica-1", "lease_1", Directive.STOP)
        await call
    assert left.is_set()
    assert log.ends == [STARTED]


async def test_a_draining_replica_hands_back_all_it_has_and_takes_no_more() -> None:
    log, shutdown = ReportLog(), threading.Event()
    entered = [threading.Event(), threading.Event()]
    async with replica(log, slots=2, is_draining=shutdown.is_set) as worker:
        tasks = [replace(task(Stage.SAMPLING), job_id=f"video_{n}", lease=f"lease_{n}") for n in range(2)]
        calls = [
            asyncio.create_task(worker.run(one, parking(event))) for one, event in zip(tasks, entered, strict=True)
        ]
        for event in entered:
            await asyncio.to_thread(event.wait)
        shutdown.set()
        await asyncio.gather(*calls)
        assert log.announced[-1].slots == 0
        await worker.run(task(Stage.SAMPLING), steps(1))
    parked = [event for event in log.ends if isinstance(event, Parked)]
    assert parked == [Parked(1, "the replica was told to leave")] * 2
    assert isinstance(log.ends[-1], Failed) and log.ends[-1].transient


async def test_all_tasks_of_a_replica_are_reported_in_one_call() -> None:
    log = ReportLog()
    held = threading.Event()

    async def work(running: RunningTask) -> None:
        def loop() -> None:
            running.progress(1, 2)
            held.wait()

        await running.in_thread(loop)

    async with replica(log, slots=3) as worker:
        tasks = [replace(task(Stage.SAMPLING), job_id=f"video_{n}", lease=f"lease_{n}") for n in range(3)]
        calls = [asyncio.create_task(worker.run(one, work)) for one in tasks]
        while sum(isinstance(event, Progress) for event in log.events) < 3:
            await asyncio.sleep(0.01)
        held.set()
        await asyncio.gather(*calls)
    assert log.batches <= 3
    assert {report.job_id for report in log.reports} == {"video_0", "video_1", "video_2"}


async def test_close_stops_what_runs() -> None:
    entered, left = threading.Event(), threading.Event()
    async with replica(ReportLog()) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), endless(entered, left)))
        await asyncio.to_thread(entered.wait)
        worker.close()
        await call
    assert left.is_set()


async def test_model_threads_compute_no_gradients() -> None:
    seen: list[bool] = []

    async def work(running: RunningTask) -> None:
        await running.in_thread(lambda: seen.append(torch.is_grad_enabled()))

    async with replica(ReportLog()) as worker:
        await worker.run(task(Stage.SAMPLING), work)
        worker.warm_up(lambda: seen.append(torch.is_grad_enabled()))
    assert seen == [False, False]


class HeldReportLog(ReportLog):
    """A registry that hears events of one kind at once and answers when it is let."""

    def __init__(self, kind: type[Event]) -> None:
        super().__init__()
        self.heard, self.may_answer = asyncio.Event(), asyncio.Event()
        self._kind = kind

    async def report(self, report: Report) -> Directive:
        answer = await super().report(report)
        if isinstance(report.event, self._kind):
            self.heard.set()
            await self.may_answer.wait()
        return answer


async def announced(log: ReportLog) -> None:
    """Until what was posted has been collected and heeded."""
    calls = len(log.announced)
    while len(log.announced) < calls + 2:
        await asyncio.sleep(0.005)


async def asked_to_park(running: RunningTask) -> Event | None:
    """Work that lets go at once if it was asked to."""
    return None if running.park_reason is None else Parked(4, running.park_reason, running.device_s)


async def test_a_request_to_park_that_comes_while_the_start_is_being_told_is_heeded() -> None:
    log = HeldReportLog(Started)
    async with replica(log) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), asked_to_park))
        await log.heard.wait()
        log.mailbox.post("replica-1", "lease_1", Directive.PARK)
        await announced(log)
        log.may_answer.set()
        await call
    assert log.ends == [STARTED, Parked(4, "the registry asked for it")]


@pytest.mark.parametrize(
    ("directives", "wanted"),
    [
        ([Directive.PARK], [STARTED, Parked(4, "the registry asked for it")]),
        ([Directive.PARK, Directive.PARK], [STARTED, Parked(4, "the registry asked for it")]),
        ([Directive.STOP], []),
        ([Directive.PARK, Directive.STOP], []),
    ],
)
async def test_who_waits_for_a_slot_hears_too(directives: list[Directive], wanted: list[Event]) -> None:
    log, entered = ReportLog(), threading.Event()
    async with replica(log) as worker:
        first = asyncio.create_task(worker.run(task(Stage.SAMPLING), parking(entered)))
        await asyncio.to_thread(entered.wait)
        waiting = replace(task(Stage.SAMPLING), job_id="video_2", lease="lease_2")
        second = asyncio.create_task(worker.run(waiting, asked_to_park))
        await asyncio.sleep(0)
        for directive in directives:
            log.mailbox.post("replica-1", "lease_2", directive)
            await announced(log)
        log.mailbox.post("replica-1", "lease_1", Directive.PARK)
        await asyncio.gather(first, second)
    assert log.events_of("video_2") == wanted


async def test_close_stops_who_waits_for_a_slot() -> None:
    log, entered = ReportLog(), threading.Event()
    async with replica(log) as worker:
        left = threading.Event()
        calls = [asyncio.create_task(worker.run(task(Stage.SAMPLING), endless(entered, left)))]
        await asyncio.to_thread(entered.wait)
        waiting = replace(task(Stage.SAMPLING), job_id="video_2", lease="lease_2")
        calls.append(asyncio.create_task(worker.run(waiting, steps(1))))
        await asyncio.sleep(0)
        worker.close()
        await asyncio.gather(*calls)
    assert log.events_of("video_2") == []


@pytest.mark.parametrize("directive", [Directive.PARK, Directive.STOP])
async def test_a_directive_that_comes_while_the_end_is_being_told_changes_nothing(directive: Directive) -> None:
    log = HeldReportLog(Finished)
    async with replica(log) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), steps(2)))
        await log.heard.wait()
        log.mailbox.post("replica-1", "lease_1", directive)
        await announced(log)
        log.may_answer.set()
        await call
        await worker.run(replace(task(Stage.SAMPLING), job_id="video_2", lease="lease_2"), steps(1))
    assert [type(event) for event in log.events_of("video_1")] == [Started, Finished]
    assert [type(event) for event in log.events_of("video_2")] == [Started, Finished]


async def test_a_draining_replica_ends_only_when_its_last_end_was_told() -> None:
    ended, shutdown, entered = asyncio.Event(), threading.Event(), threading.Event()
    log, timing = HeldReportLog(Parked), Timing(drain_poll_s=0.005)
    async with replica(log, is_draining=shutdown.is_set, end_process=ended.set, timing=timing) as worker:
        call = asyncio.create_task(worker.run(task(Stage.SAMPLING), parking(entered)))
        await asyncio.to_thread(entered.wait)
        shutdown.set()
        await log.heard.wait()
        await asyncio.sleep(0.05)
        assert not ended.is_set()
        log.may_answer.set()
        await call
        await ended.wait()


async def test_the_end_tells_the_device_time() -> None:
    log = ReportLog()

    async def work(running: RunningTask) -> None:
        running.add_device_ns(7_000_000_000)

    async with replica(log) as worker:
        await worker.run(task(Stage.SAMPLING), work)
    assert log.ends[-1] == Finished({}, 7.0)
