"""The processes below this one, so that a stop leaves none of them behind. Linux; elsewhere there are none to see."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05


def adopt_orphans() -> None:
    """Have orphaned descendants become children of this process instead of init's."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """The direct children of a process, of all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.extend(int(child) for child in task.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, parents before children."""
    found = children(pid)
    for child in found:
        found.extend(children(child))
    return found


def reap(pids: set[int]) -> None:
    """Collect those of these children that have ended."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def end_all(grace_s: float) -> None:
    """End everything below this process: what still runs after grace_s seconds is asked, then killed."""
    for send in (None, signal.SIGTERM, signal.SIGKILL):
        if _wait_for_none(send, grace_s):
            return


def kill_all() -> None:
    """Kill everything below this process and wait until it is gone."""
    _wait_for_none(signal.SIGKILL, 10)


def _wait_for_none(send: signal.Signals | None, seconds: float) -> bool:
    """Whether no descendant is left before the time is over."""
    me = os.getpid()
    deadline = time.monotonic() + seconds
    sent: set[int] = set()
    while left := descendants(me):
        reap(set(children(me)))
        if send is not None:
            _send(send, [pid for pid in left if pid not in sent])
            sent.update(left)
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
