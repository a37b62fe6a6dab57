"""Runs a command that must not outlive the process which asked for it, however that process dies.

    python -I -S process_guard.py GRACE_SECONDS COMMAND [ARGUMENT ...]

The guardian's stdin is a pipe held by the asking process alone. When it closes, the command gets SIGTERM
and, after the grace time, SIGKILL. On Linux the kernel also kills the command when the guardian itself is
killed. The command's exit code is passed on; 128 + n tells that signal n ended it. Standard library only, and
little of it: one guardian takes a few megabytes.
"""

import os
import select
import signal
import sys
import time

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOT_STARTED = 127
# What the command makes is its owner's alone.
UMASK = 0o077


def guarded(command: list[str], grace_s: float) -> list[str]:
    """The command line that runs a command under a guardian.

    Args:
        command: the command and its arguments.
        grace_s: seconds between SIGTERM and SIGKILL.
    """
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(grace_s), *command]


def main(grace_s: float, command: list[str]) -> int:
    """Run the command to its end; returns the exit code to pass on."""
    _own_session()
    os.umask(UMASK)
    wakeups = _signal_pipe()
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, guardian)
    code = os.waitstatus_to_exitcode(_watch(child, wakeups, grace_s))
    return code if code >= 0 else 128 - code


def _own_session() -> None:
    """Out of the terminal's group: Ctrl-C reaches the asking process, which then closes the pipe."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def _signal_pipe() -> int:
    """A file descriptor on which each signal that matters appears as one byte."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *STOP_SIGNALS):
        signal.signal(number, lambda *_: None)
    return readable


def _become(command: list[str], guardian: int) -> None:
    """In the child: turn into the command. Does not return."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *STOP_SIGNALS):
            signal.signal(number, signal.SIG_DFL)
        _die_with(guardian)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _die_with(guardian: int) -> None:
    """Linux: have the kernel kill this process with the guardian. Elsewhere the pipe alone must do."""
    if not sys.platform.startswith("linux"):
        return
    # Imported in the child only: exec gives the memory back.
    import ctypes

    pr_set_pdeathsig = 1
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != guardian:
        os._exit(NOT_STARTED)


def _watch(child: int, wakeups: int, grace_s: float) -> int:
    """Wait for the child's end, return its wait status; stop it when the pipe closes or a signal says so."""
    sources = [0, wakeups]
    deadline: float | None = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = select.select(sources, [], [], left)[0]
        if deadline is None and (_closed(ready) or _has_stop_signal(ready, wakeups)):
            os.kill(child, signal.SIGTERM)
            sources = [wakeups]
            deadline = time.monotonic() + grace_s
        elif wakeups in ready:
            _drain(wakeups)
        elif deadline is not None and not ready:
            os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + grace_s


def _closed(ready: list[int]) -> bool:
    return 0 in ready and not os.read(0, 4096)


def _has_stop_signal(ready: list[int], wakeups: int) -> bool:
    return wakeups in ready and not set(STOP_SIGNALS).isdisjoint(_drain(wakeups))


def _drain(wakeups: int) -> bytes:
    try:
        return os.read(wakeups, 4096)
    except BlockingIOError:
        return b""


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
