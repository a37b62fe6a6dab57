"""A running task without a replica around: its clocks, its progress, its way to the store."""

import asyncio
import threading
from pathlib import Path

import pytest

from deployments.errors import StoppedError, StorageUnavailableError
from deployments.messages import Progress
from deployments.replica.running_task import Stopwatch, TaskStore, Timing
from tests.support.workers.fakes import Clock, running_task
from tests.support.workers.memory_store import MemoryStore


def test_the_stopwatch_adds_laps_of_one_name() -> None:
    watch = Stopwatch()
    watch.lap("decode")
    first = watch.seconds["decode"]
    watch.lap("mp4")
    threading.Event().wait(0.002)
    watch.lap("decode")
    assert watch.seconds["decode"] >= first + 0.001
    assert set(watch.seconds) == {"decode", "mp4"}


async def test_the_device_time_is_that_of_the_thread() -> None:
    clock = Clock()
    running = running_task(now_ns=clock)

    def work() -> None:
        for done in range(3):
            clock.advance(1_500_000_000)
            running.progress(done, 3)
            assert running.latest is not None
            reported.append(running.latest.device_s)

    reported: list[float] = []
    await running.in_thread(work)
    clock.advance(10_000_000_000)
    assert running.device_s == 4.5
    await running.in_thread(work)
    assert reported == [1.5, 3.0, 4.5, 6.0, 7.5, 9.0]


async def test_the_time_of_work_that_fails_counts() -> None:
    clock = Clock()
    running = running_task(now_ns=clock)

    def work() -> None:
        clock.advance(2_000_000_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await running.in_thread(work)
    assert running.device_s == 2


async def test_what_is_reported_has_the_newest_device_time_and_is_reported_once() -> None:
    clock = Clock()
    running = running_task(now_ns=clock)
    assert running.take_progress() is None
    running.progress(1, 2)
    running.add_device_ns(3_000_000_000, passes=0.5)
    assert running.has_new_progress
    assert running.take_progress() == Progress(1, 2, 1, None, 3.0, passes=0.5)
    assert not running.has_new_progress


async def test_many_threads_may_add_device_time() -> None:
    running = running_task()

    def add() -> None:
        for _ in range(10_000):
            running.add_device_ns(1)

    await asyncio.gather(*(asyncio.to_thread(add) for _ in range(4)))
    assert running.device_s == 40_000 / 1e9


async def test_who_waits_and_asks_whether_to_go_on_is_not_stuck() -> None:
    clock = Clock()
    running = running_task(now_ns=clock)
    clock.advance(int(2 * running.timing.stall_s * 1e9))
    assert running.is_stalled
    running.raise_if_stopped()
    assert not running.is_stalled


async def test_a_stopped_task_changes_nothing_in_the_store(tmp_path: Path) -> None:
    store, running = MemoryStore(), running_task()
    seen = TaskStore(store, running)
    await seen.put("a", b"1", "text/plain")
    running.stop()
    (tmp_path / "b").write_bytes(b"2")
    with pytest.raises(StoppedError):
        await seen.put("b", b"2", "text/plain")
    with pytest.raises(StoppedError):
        await seen.put_file("b", tmp_path / "b", "text/plain")
    with pytest.raises(StoppedError):
        await seen.delete("a")
    assert store.changes == [("put", "a")]
    assert await seen.get("a") == b"1" and await seen.list_keys("") == ["a"]


async def test_a_result_waits_for_a_store_that_is_away(tmp_path: Path) -> None:
    away = iter((True, True, False, True, False))
    store = MemoryStore(down=lambda key: next(away))
    patient = TaskStore(store, running_task(timing=Timing(store_retry_s=0.001)))
    await patient.put_result("a", b"1", "text/plain")
    (tmp_path / "b").write_bytes(b"2")
    await patient.put_result_file("b", tmp_path / "b", "text/plain")
    assert store.objects == {"a": b"1", "b": b"2"}


async def test_a_store_that_stays_away_is_given_up() -> None:
    store = TaskStore(MemoryStore(down=lambda key: True), running_task(timing=Timing(store_away_s=0)))
    with pytest.raises(StorageUnavailableError):
        await store.put_result("a", b"1", "text/plain")


async def test_a_stop_ends_the_waiting_for_the_store() -> None:
    running, tried = running_task(timing=Timing(store_retry_s=0.001)), list[str]()

    def down(key: str) -> bool:
        tried.append(key)
        if len(tried) == 3:
            running.stop()
        return True

    with pytest.raises(StoppedError):
        await TaskStore(MemoryStore(down), running).put_result("a", b"1", "text/plain")
    assert tried == ["a"] * 3
