"""Moves the wall clock of every Python process that finds this file on its path, by what CHAOS_CLOCK_FILE says.

A library that does so for whole processes (libfaketime 0.9.10) does not leave the monotonic clock alone: `time.sleep`
of Python 3.11 raises under it, and Ray does not start. The clock of S3 signatures (`datetime`) stays real, as does
that of the object store, which is another program.
"""

import os
import time

_FILE = os.environ.get("CHAOS_CLOCK_FILE", "")
_LOOK_AGAIN_S = 0.2
_real_ns = time.time_ns
_ahead_s = 0
_read_at = float("-inf")


def _ahead() -> int:
    global _ahead_s, _read_at
    now = time.monotonic()
    if now - _read_at >= _LOOK_AGAIN_S:
        _read_at = now
        try:
            with open(_FILE) as file:
                _ahead_s = int(file.read())
        except (OSError, ValueError):
            # The run is over and the file is gone: the clock stays where it was.
            return _ahead_s
    return _ahead_s


def _time() -> float:
    return _time_ns() / 1e9


def _time_ns() -> int:
    return _real_ns() + _ahead() * 10**9


if _FILE:
    time.time, time.time_ns = _time, _time_ns
