"""Kills the process that started it when that process hangs.

    python -I -S watcher.py WATCHED TICK_S IDLE_S SILENT_S

WATCHED is the process id of the parent, which writes a byte to the stdin of this one every now and then, from the
event loop that does its work. One that is stopped (SIGSTOP), or gives no sign and does nothing, is killed after IDLE_S
seconds; one that gives no sign but works, in a long step of a library that lets no other thread run, after SILENT_S.
Only seconds in which this process itself ran on time are counted: after the machine slept or was frozen, both begin
where they were. It ends when the pipe closes or the parent ends. Linux; standard library only, and little of it.
"""

import os
import select
import signal
import sys
import time
from contextlib import suppress
from enum import Enum


class Activity(Enum):
    """What a process was seen to do."""

    STOPPED = "stopped"
    IDLE = "idle"
    BUSY = "busy"


class Silence:
    """How long the watched process has given no sign.

    Args:
        tick_s: seconds between two looks; one that is later counts as this long.
        idle_s: how long it may be stopped, or silent and idle, in seconds.
        silent_s: how long it may be silent and busy, in seconds.
    """

    def __init__(self, tick_s: float, idle_s: float, silent_s: float) -> None:
        self._tick_s = tick_s
        self._idle_s = idle_s
        self._silent_s = silent_s
        self._begun = False
        self._idle = 0.0
        self._silent = 0.0

    def end(self) -> None:
        """A sign came."""
        self._begun = True
        self._idle = self._silent = 0.0

    def lasts(self, elapsed_s: float, activity: Activity) -> bool:
        """No sign came for `elapsed_s` more; whether the process hangs.

        Before its first sign it loads what it needs, for as long as that takes: then only a stop counts.
        """
        counted_s = min(elapsed_s, self._tick_s)
        if activity is Activity.STOPPED or (self._begun and activity is Activity.IDLE):
            self._idle += counted_s
        elif not self._begun:
            self._idle = 0.0
        if self._begun:
            self._silent += counted_s
        return self._idle >= self._idle_s or self._silent >= self._silent_s


class Activities:
    """What a process does, by /proc: one look after the other.

    Its own time and the pages it waited for tell of work, and so does a thread that runs, waits for a processor, or
    waits for a disk.
    """

    BUSY_SHARE = 0.1  # of a processor: what waits all the time, with Ray's threads in it, takes less

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}"
        self._ticks_per_s: int = os.sysconf("SC_CLK_TCK")
        self._ticks = self._faults = 0

    def begin(self) -> None:
        """What it did until now tells nothing."""
        with suppress(OSError, ValueError, IndexError):
            _, self._faults, self._ticks = _stat(f"{self._folder}/stat")

    def look(self, elapsed_s: float) -> Activity:
        """What it did in the seconds since the last look. One that cannot be looked at counts as busy."""
        try:
            state, faults, ticks = _stat(f"{self._folder}/stat")
            busy = faults > self._faults or ticks - self._ticks > self.BUSY_SHARE * elapsed_s * self._ticks_per_s
            self._faults, self._ticks = faults, ticks
            if state == "T":
                return Activity.STOPPED
            return Activity.BUSY if busy or self._has_thread_at_work() else Activity.IDLE
        except (OSError, ValueError, IndexError):
            return Activity.BUSY

    def _has_thread_at_work(self) -> bool:
        threads = os.listdir(f"{self._folder}/task")
        return any(_stat(f"{self._folder}/task/{thread}/stat")[0] in "RD" for thread in threads)


def _stat(path: str) -> tuple[str, int, int]:
    """State, major page faults and clock ticks used, as proc(5) has them."""
    with open(path) as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[0], int(fields[9]), int(fields[11]) + int(fields[12])


def main(watched: int, tick_s: float, idle_s: float, silent_s: float) -> None:
    """Watch until the pipe closes or the parent has ended; a terminal's Ctrl-C is the parent's business."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    handle = _handle(watched)
    silence = Silence(tick_s, idle_s, silent_s)
    activities = Activities(watched)
    looked = time.monotonic()
    while os.getppid() == watched:
        ready = select.select([0], [], [], tick_s)[0]
        now = time.monotonic()
        elapsed_s, looked = now - looked, now
        if ready:
            if not os.read(0, 4096):
                return
            silence.end()
            activities.begin()
        elif silence.lasts(elapsed_s, activities.look(elapsed_s)):
            os.write(2, f"process {watched} hangs: it gave no sign of life, and is killed\n".encode())
            _kill(watched, handle)
            return


def _handle(pid: int) -> int | None:
    """Names the process, where its number may be another's by then; None where the system has no such handles."""
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def _kill(pid: int, handle: int | None) -> None:
    with suppress(ProcessLookupError):
        if handle is None:
            os.kill(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(handle, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(float, sys.argv[2:]))
