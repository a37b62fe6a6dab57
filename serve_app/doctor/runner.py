"""Runs the checks one after the other, each for a bounded time."""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from serve_app.doctor.finding import Check, Finding, State, fault
from serve_app.doctor.surroundings import Surroundings

_END = None


def examine(
    surroundings: Surroundings, checks: Iterable[Check], tell: Callable[[Finding], None] = lambda finding: None
) -> list[Finding]:
    """What all checks found, in order.

    One that hangs is left behind in its thread, which does not keep the process alive; one that raises is a finding.

    Args:
        tell: called with each finding as soon as it is known.
    """
    findings: list[Finding] = []
    for check in checks:
        for finding in _run(check, surroundings):
            findings.append(finding)
            tell(finding)
    return findings


def is_fit(findings: Iterable[Finding]) -> bool:
    """Whether none of them is a fault."""
    return all(finding.state is not State.FAULT for finding in findings)


def _run(check: Check, surroundings: Surroundings) -> Iterable[Finding]:
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            for finding in check.look(surroundings):
                found.put(finding)
        except Exception as error:  # whatever it is, the others are to be looked at
            found.put(_raised(check, error))
        found.put(_END)

    threading.Thread(target=look, name=f"check {check.name}", daemon=True).start()
    deadline = time.monotonic() + check.limit_s
    while True:
        with suppress(queue.Empty):
            finding = found.get(timeout=max(0.0, deadline - time.monotonic()))
            if finding is _END:
                return
            yield finding
            continue
        yield fault(check.name, f"gave no answer within {check.limit_s:g} s", check.hung)
        return


def _raised(check: Check, error: Exception) -> Finding:
    text = " ".join(str(error).split()) or "no reason was given"
    return fault(
        check.name,
        f"could not be looked at: {type(error).__name__}: {text}",
        "mend what the error names; if it names nothing of yours, it is a mistake of `doctor`: report it",
    )
