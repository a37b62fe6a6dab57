"""What a check found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_app.doctor.surroundings import Surroundings


class State(StrEnum):
    """How it stands with one thing."""

    OK = "ok"
    WARNING = "warning"  # the server works with it, and worse than it could
    FAULT = "fault"  # the server does not start, or does not work
    SKIPPED = "skipped"  # there was nothing to look at


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. Names are stable: scripts go by them."""

    name: str  # snake_case
    state: State
    told: str  # what was seen
    advice: str = ""  # what to do


@dataclass(frozen=True, slots=True)
class Check:
    """A function that looks at one thing.

    It yields a finding for each question that it has answered; what it yielded counts, though it may hang or raise
    afterwards.
    """

    name: str  # of its first finding; of the one that tells that it hung
    look: "Callable[[Surroundings], Iterator[Finding]]"
    limit_s: float = 20.0  # then it counts as hung
    hung: str = "look at what it asks: a disk, a network or a process there does not answer"  # advice


def ok(name: str, told: str) -> Finding:
    return Finding(name, State.OK, told)


def warning(name: str, told: str, advice: str) -> Finding:
    return Finding(name, State.WARNING, told, advice)


def fault(name: str, told: str, advice: str) -> Finding:
    return Finding(name, State.FAULT, told, advice)


def skipped(name: str, told: str) -> Finding:
    return Finding(name, State.SKIPPED, told)


def split_fault(name: str, message: str) -> Finding:
    """A fault of an error's one line: before the last semicolon stands what was seen, behind it what to do."""
    told, _, advice = message.rpartition("; ")
    return fault(name, told or message, advice if told else "see docs/operations.md")
