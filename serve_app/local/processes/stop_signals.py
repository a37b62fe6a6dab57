"""The signals by which people and machines end a process, and how it ends by the second one."""

import contextlib
import os
import signal
from typing import NoReturn

# SIGHUP: the terminal was closed.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = b"\x1b[?25h"


def exit_code(number: int) -> int:
    """As shells tell of a process that a signal ended: 130 for Ctrl-C."""
    return 128 + number


def signal_name(number: int) -> str:
    """For people."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def die(number: int) -> NoReturn:
    """End the process at once, with a word; progress bars may have hidden the cursor."""
    with contextlib.suppress(OSError):
        cursor = _SHOW_CURSOR if os.isatty(2) else b""
        os.write(2, cursor + f"\nmochi-serve: ended at once by a second {signal_name(number)}\n".encode())
    os._exit(exit_code(number))
