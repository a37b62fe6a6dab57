"""The processes below this one, so that a stop leaves none of them behind."""

import contextlib
import ctypes
import signal
import sys
import time
from collections.abc import Collection

import psutil

PR_SET_CHILD_SUBREAPER = 36
KILL_S = 10.0
POLL_S = 0.05


def adopt_orphans() -> None:
    """Have orphaned descendants become children of this process instead of init's. Linux alone can do that."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_children(keep: Collection[int]) -> None:
    """Collect the children of this process that have ended, but for the pids in `keep`."""
    psutil.wait_procs([child for child in psutil.Process().children() if child.pid not in keep], timeout=0)


def end_all(grace_s: float) -> None:
    """End everything below this process.

    Args:
        grace_s: seconds that the processes have to end by themselves, and then again after SIGTERM and after SIGKILL.
    """
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if _wait_for_none(number, grace_s):
            return


def kill_all() -> None:
    """Kill everything below this process and wait until it has ended."""
    _wait_for_none(signal.SIGKILL, KILL_S)


def _wait_for_none(number: signal.Signals | None, seconds: float) -> bool:
    """Send each descendant the signal, if any, once; whether none is left before the time is over."""
    deadline = time.monotonic() + seconds
    signalled: set[psutil.Process] = set()
    # Listed again and again: a process may start another one while it ends.
    while left := psutil.Process().children(recursive=True):
        for process in left:
            if number is not None and process not in signalled:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        signalled.update(left)
        psutil.wait_procs(left, timeout=POLL_S)
        if time.monotonic() > deadline:
            return False
    return True
