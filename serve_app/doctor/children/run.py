"""Asks a child process, and ends it when it takes too long."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from deployments.errors import MochiServeError

MARK = "mochi-serve-doctor: "
_TOLD_CHARS = 300


class ChildError(MochiServeError):
    """The child ended without an answer, or did not end in time."""


def ask_child(name: str, *arguments: str, limit_s: float) -> dict[str, Any]:
    """The answer of `serve_app.doctor.children.NAME`, a module that prints it by `answer`. Blocks.

    Raises:
        ChildError: it has none within limit_s; says how it ended and what it said last.
    """
    command = [sys.executable, "-m", f"serve_app.doctor.children.{name}", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ChildError(f"no answer within {limit_s:g} s") from None
    finally:
        # Also what it has started itself.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for line in output.decode(errors="replace").splitlines():
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    raise ChildError(f"the process that looked ended {_how(process.returncode)}: {_last_line(errors)}")


def answer(value: dict[str, Any]) -> None:
    """Called in the child; libraries may print what they like beside it."""
    sys.stdout.write(f"\n{MARK}{json.dumps(value)}\n")
    sys.stdout.flush()


def _how(code: int) -> str:
    if code >= 0:
        return f"with code {code}"
    with suppress(ValueError):
        return f"by {signal.Signals(-code).name}"
    return f"by signal {-code}"


def _last_line(errors: bytes) -> str:
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:_TOLD_CHARS] if lines else "it said nothing"
