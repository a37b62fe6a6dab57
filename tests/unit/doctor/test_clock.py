"""How far another clock is away."""

from email.utils import formatdate

import pytest

from serve_app.doctor.checks.clock import clock_finding, date_finding
from serve_app.doctor.finding import State


@pytest.mark.parametrize(
    ("theirs", "state", "told"),
    [
        (1000.0, State.OK, "it has this machine's time"),
        (999.2, State.OK, "it has this machine's time"),  # a whole second that has begun before
        (1000.9, State.OK, "it has this machine's time"),
        (1010.0, State.WARNING, "it is 9 s ahead of this machine"),
        (980.0, State.WARNING, "it is 19 s behind this machine"),
        (4600.0, State.FAULT, "it is 3599 s ahead of this machine"),
        (900.0, State.FAULT, "it is 99 s behind this machine"),
    ],
)
def test_what_a_clock_reads_between_two_readings_of_ours(theirs: float, state: State, told: str) -> None:
    found = clock_finding("clock", "it", theirs, before=1000.0, after=1001.0)
    assert (found.state, found.told) == (state, told)
    assert ("NTP" in found.advice) is (state is not State.OK)


def test_a_slow_answer_is_no_skew() -> None:
    assert clock_finding("clock", "it", 1020.0, before=1000.0, after=1030.0).state is State.OK


def test_a_header_date() -> None:
    assert date_finding("clock", "it", formatdate(1000, usegmt=True), 1000.4, 1000.6).state is State.OK
    assert date_finding("clock", "it", formatdate(900, usegmt=True), 1000.4, 1000.6).state is State.FAULT
    assert date_finding("clock", "it", None, 0, 1).state is State.SKIPPED
    assert date_finding("clock", "it", "yesterday", 0, 1).state is State.SKIPPED
