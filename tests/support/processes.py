"""Waiting for processes to be gone."""

import time
from collections.abc import Iterable
from pathlib import Path

PATIENCE_S = 300


def gone(pids: Iterable[int]) -> bool:
    """Whether all of these processes end; looks again until they do or patience is over."""
    deadline = time.monotonic() + PATIENCE_S
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
