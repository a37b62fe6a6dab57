"""Kills what is stopped below this process: Ray and Serve start again what ended, and leave behind what stands still.

The app's own processes have a watchdog each, on every machine (`deployments.watchdog`). Those of Serve and HAProxy have
none; on one machine they are looked at here.
"""

import contextlib
import logging
import time
from collections.abc import Collection

import psutil

from deployments.watchdog.watcher import Activity, Silence

STOPPED_S = 10.0
log = logging.getLogger(__name__)


class StoppedProcesses:
    """The descendants of this process that were stopped (SIGSTOP) when they were last looked at.

    Args:
        look_s: seconds between two looks; a look that is late counts as one on time, because this process may have been
            stopped with them.
        limit_s: how long one may be stopped, in seconds.
    """

    def __init__(self, look_s: float, limit_s: float = STOPPED_S) -> None:
        self._look_s = look_s
        self._limit_s = limit_s
        self._silences: dict[psutil.Process, Silence] = {}
        self._looked = time.monotonic()

    def kill(self, spare: Collection[int]) -> None:
        """Look, and kill those that are stopped for too long, but for the pids in `spare`."""
        elapsed_s, self._looked = time.monotonic() - self._looked, time.monotonic()
        below = psutil.Process().children(recursive=True)
        stopped = [process for process in below if process.pid not in spare and _is_stopped(process)]
        self._silences = {process: self._silences.get(process) or self._silence() for process in stopped}
        for process, silence in self._silences.items():
            if silence.lasts(elapsed_s, Activity.STOPPED):
                log.warning("process %d is stopped, and is killed so that it is started again", process.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _silence(self) -> Silence:
        return Silence(self._look_s, self._limit_s, self._limit_s)


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
