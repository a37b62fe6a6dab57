"""The watchdog with real processes that stand still, work, or end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.support import ROOT
from tests.support.waiting import alive, gone, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

# Says the process that watches it, then does `work` on its loop once it beats.
WATCHED = """
import asyncio, sys, time
from deployments.watchdog.heartbeat import Watchdog, WatchdogTiming

async def main():
    watchdog = Watchdog(WatchdogTiming(beat_s=0.05, idle_s=0.5, silent_s={silent_s}))
    beating = asyncio.create_task(watchdog.beat_forever())
    print(watchdog.pid, flush=True)
    await asyncio.sleep(0.3)
    {work}
    print("done", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""
HOLD = "while time.process_time() < 3: sum(range(10**6))"  # without an await: the loop stands still, the process works


@contextmanager
def watched(work: str = "pass", silent_s: float = 1000) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A watched process and the id of what watches it."""
    program = WATCHED.format(work=work, silent_s=silent_s)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as made:
        try:
            assert made.stdout is not None
            yield made, int(made.stdout.readline())
        finally:
            made.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_stopped_process_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    with watched() as (process, watcher):
        assert said(process) == "done"
        process.send_signal(signal.SIGSTOP)
        assert process.wait() == -signal.SIGKILL
        assert gone([watcher])
    assert f"process {process.pid} hangs" in capfd.readouterr().err


def test_a_process_whose_loop_waits_for_ever_is_killed() -> None:
    with watched("time.sleep(1000)") as (process, watcher):
        assert process.wait() == -signal.SIGKILL
        assert gone([watcher])


def test_a_long_step_that_lets_nothing_else_run_is_no_hang() -> None:
    with watched(HOLD) as (process, watcher):
        assert said(process) == "done"
        assert alive(watcher)


def test_one_that_works_and_never_comes_back_is_killed_in_the_end() -> None:
    with watched("while True: pass", silent_s=1.5) as (process, _):
        assert process.wait() == -signal.SIGKILL


def test_what_watches_ends_with_its_process() -> None:
    with watched() as (process, watcher):
        assert alive(watcher)
        process.kill()
    assert gone([watcher])


def test_what_watches_is_started_again() -> None:
    with watched() as (process, watcher):
        os.kill(watcher, signal.SIGKILL)
        wait_until(
            lambda: [p.pid for p in psutil.Process(process.pid).children() if alive(p.pid)] not in ([], [watcher])
        )
        process.send_signal(signal.SIGSTOP)
        assert process.wait() == -signal.SIGKILL


def test_a_process_that_was_stopped_together_with_what_watches_it_lives_on() -> None:
    """As after the sleep of a machine, or in a container that was paused."""
    with watched() as (process, watcher):
        assert said(process) == "done"
        for pid in (watcher, process.pid):
            os.kill(pid, signal.SIGSTOP)
        frozen = time.monotonic()
        wait_until(lambda: time.monotonic() > frozen + 2)
        for pid in (watcher, process.pid):
            os.kill(pid, signal.SIGCONT)
        again = psutil.Process(process.pid).cpu_times().user
        wait_until(lambda: psutil.Process(process.pid).cpu_times().user > again or process.poll() is not None)
        assert process.poll() is None and alive(watcher)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs smaps_rollup")
def test_it_is_small() -> None:
    with watched() as (process, watcher):
        assert said(process) == "done"
        with open(f"/proc/{watcher}/smaps_rollup") as rollup:
            private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    assert private < 12_000, "kilobytes"
