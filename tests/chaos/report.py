"""The table of a run, what went wrong in it, and one line of JSON."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.judge import Outcome

COLUMNS = (
    "fault",
    "in flight",
    "accepted",
    "completed",
    "completed twice",
    "lost",
    "failed",
    "steps run twice",
    "videos different",
    "sums different",
    "requests repeated",
    "strikes",
    "seconds",
)
SHOWN = 10
LOG_LINES = 60
_COMPLAINT = re.compile(r"WARNING|ERROR|CRITICAL|Traceback|Error\b|Exception\b")


def say(text: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def header() -> str:
    return "  ".join([f"{COLUMNS[0]:<13}", *COLUMNS[1:]])


def line(outcome: Outcome) -> str:
    """One fault's line of the table."""
    row = outcome.row
    return "  ".join([f"{row['fault']:<13}", *(f"{row[name]:>{len(name)}}" for name in COLUMNS[1:])])


def details(outcome: Outcome) -> list[str]:
    """What the line cannot tell: odd answers, why requests were repeated, and the jobs that are not as promised."""
    odd: list[str] = [f"  answer {what}: {count} times" for what, count in sorted(outcome.odd.items())]
    repeated = [f"  repeated after {what}: {count} times" for what, count in sorted(outcome.repeated.items())]
    return odd + repeated + shortened([f"  {complaint}" for complaint in outcome.complaints])


def shortened(lines: Sequence[str]) -> list[str]:
    left = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"  and {left} more"] if left > 0 else [])]


def complaints(log: Path) -> list[str]:
    """The last warnings and errors of a server's log."""
    lines = log.read_text(errors="replace").splitlines()
    return [f"  {one}" for one in lines if _COMPLAINT.search(one)][-LOG_LINES:]
