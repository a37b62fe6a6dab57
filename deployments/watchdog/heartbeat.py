"""Has this process killed when it hangs, so that Ray starts it again as it does after any other end.

Ray and Serve notice a process that ended within seconds, one that stands still only after more than a minute, and then
leave it behind.
"""

import asyncio
import logging
import os
import subprocess
import sys
from dataclasses import dataclass

from deployments.watchdog import watcher

log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class WatchdogTiming:
    """What counts as a hang, in seconds; see `watcher`."""

    beat_s: float = 1.0  # between two signs of life
    idle_s: float = 10.0
    silent_s: float = 120.0


class Watchdog:
    """The process that watches this one. It ends when this one does, or with `close`.

    From the start on it kills a process that is stopped, from the first beat on one that is silent.
    """

    def __init__(self, timing: WatchdogTiming = WatchdogTiming()) -> None:
        self._timing = timing
        self._process = self._start()
        self._is_gone = False  # what watches has ended, as the last beat found

    @property
    def pid(self) -> int:
        """Of the process that watches."""
        return self._process.pid

    async def beat_forever(self) -> None:
        """Give signs of life from the running loop, until it is cancelled; it closes then.

        What watches is started again when it was killed.
        """
        try:
            while True:
                self._beat()
                await asyncio.sleep(self._timing.beat_s)
        finally:
            self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _beat(self) -> None:
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), b".")
        except BlockingIOError:  # it is stopped, and the pipe is full
            pass
        except BrokenPipeError:
            # Ray ends the children of a process before the process itself, which must not start another one then.
            if not self._is_gone:
                self._is_gone = True
                return
            self._is_gone = False
            log.warning("the process that watches this one has ended; it is started again")
            self.close()
            self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        timing = self._timing
        # A look comes when a beat is missing, so that none is wasted on a process that beats.
        bounds = [str(seconds) for seconds in (2 * timing.beat_s, timing.idle_s, timing.silent_s)]
        # In the same process group: what a terminal stops it stops with this process.
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", watcher.__file__, str(os.getpid()), *bounds],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process


def watch_this_process(timing: WatchdogTiming = WatchdogTiming()) -> asyncio.Task[None]:
    """Have this process watched by its running event loop, until the task is cancelled or the process ends."""
    return asyncio.get_running_loop().create_task(Watchdog(timing).beat_forever())
