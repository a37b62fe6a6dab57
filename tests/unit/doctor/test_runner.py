"""Checks are run one after the other, each for a bounded time, and none ends the others."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.doctor.finding import Check, Finding, State, ok, split_fault, warning
from serve_app.doctor.runner import examine, is_fit
from serve_app.doctor.surroundings import Surroundings
from tests.support.doctor import patient


@pytest.fixture
def s(tmp_path: Path) -> Surroundings:
    return patient(tmp_path)


def well(s: Surroundings) -> Iterator[Finding]:
    yield ok("well", "it is")


def test_findings_come_in_order_and_are_told_at_once(s: Surroundings) -> None:
    told: list[str] = []

    def second(s: Surroundings) -> Iterator[Finding]:
        assert told == ["well"]
        yield warning("second", "so so", "mend it")

    findings = examine(s, [Check("well", well), Check("second", second)], lambda finding: told.append(finding.name))
    assert [finding.name for finding in findings] == told == ["well", "second"]
    assert is_fit(findings)


def test_a_check_that_hangs_is_a_fault_with_its_advice_and_keeps_what_it_found(s: Surroundings) -> None:
    release = threading.Event()

    def hangs(s: Surroundings) -> Iterator[Finding]:
        yield ok("first", "there")
        release.wait()
        yield ok("late", "nobody listens")

    findings = examine(s, [Check("hangs", hangs, limit_s=0.2, hung="see the disk"), Check("well", well)])
    release.set()
    assert [(one.name, one.state, one.advice) for one in findings] == [
        ("first", State.OK, ""),
        ("hangs", State.FAULT, "see the disk"),
        ("well", State.OK, ""),
    ]
    assert findings[1].told == "gave no answer within 0.2 s" and not is_fit(findings)


def test_a_check_that_raises_is_a_fault_that_names_the_error(s: Surroundings) -> None:
    def raises(s: Surroundings) -> Iterator[Finding]:
        yield ok("first", "there")
        raise OSError(5, "Input/output error", "/dev/sdx")

    findings = examine(s, [Check("raises", raises), Check("well", well)])
    assert [finding.name for finding in findings] == ["first", "raises", "well"]
    assert findings[1].state is State.FAULT and "OSError: [Errno 5] Input/output error: '/dev/sdx'" in findings[1].told


def test_a_line_of_an_error_is_split_into_what_was_seen_and_what_to_do() -> None:
    assert split_fault("a", "x is full; y; free it") == Finding("a", State.FAULT, "x is full; y", "free it")
    assert split_fault("a", "x").told == "x"
