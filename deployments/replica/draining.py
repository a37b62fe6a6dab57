"""Whether Serve has told this replica to leave.

Serve calls a deployment's `__del__` only when all its calls have ended, so that a sampler would finish its videos
first. So the replica's own flag is looked at.
"""

import faulthandler
import os
import signal
import threading

from deployments.replica.serve_private import own_replica

TERMINATED = 128 + signal.SIGTERM
_terminated = threading.Event()


def is_draining() -> bool:
    """True from the moment that the Serve controller asked this replica to shut down, or the process got SIGTERM."""
    return _terminated.is_set() or _serve_is_stopping()


def end_if_terminated() -> None:
    """Once the work is handed back, do what SIGTERM asks for."""
    if _terminated.is_set():
        os._exit(TERMINATED)


def watch_sigterm() -> None:
    """Take SIGTERM as a request to leave first.

    Python sets handlers in the main thread only, which in a Ray worker is Ray's; `faulthandler` sets one from any
    thread. It writes to a pipe, and a thread waits there.
    """
    reader, writer = os.pipe()
    faulthandler.register(signal.SIGTERM, file=writer, all_threads=False)

    def wait() -> None:
        os.read(reader, 1)
        _terminated.set()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


def _serve_is_stopping() -> bool:
    replica = own_replica()
    return replica is not None and bool(replica._shutting_down)
