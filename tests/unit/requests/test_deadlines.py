"""Durations that a request gives its video, in the header and in the field."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidRequestError
from serve_app.requests.body import Form
from serve_app.requests.deadlines import MAX_S, MIN_S, PATTERN, add_header, seconds_of


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (90, 90),
        (7.5, 7.5),
        ("90", 90),
        ("90s", 90),
        ("7.5", 7.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h30m45s", 5445),
        ("2d12h", 216_000),
        ("5", 5),
        ("7d", 604_800),
        (604_800, 604_800),
    ],
)
def test_a_duration_has_units_or_is_in_seconds(duration: str | float, seconds: float) -> None:
    assert seconds_of(duration) == seconds


@pytest.mark.parametrize(
    "duration",
    ["", " 90", "90 s", "-90", "+90", "s", "90S", "1h30", "1.5h", "9e1", "٩٠", "4", "4s", 4, 4.999, "604801", "8d"]
    + ["1" * 100, 10**400, -(10**400), float("nan"), float("inf"), True, "90\n"],
)
def test_what_is_none_is_refused(duration: str | float) -> None:
    with pytest.raises(ValueError, match="not a duration|out of range"):
        seconds_of(duration)


@given(st.text("0123456789dhms.", max_size=12) | st.from_regex(PATTERN, fullmatch=True))
def test_whatever_is_taken_is_within_the_bounds(text: str) -> None:
    try:
        assert MIN_S <= seconds_of(text) <= MAX_S
        assert re.fullmatch(PATTERN, text)
    except ValueError:
        pass


@pytest.mark.parametrize("fields", [{}, {"prompt": "a"}, {"cancel_after": None}, Form(prompt="a")])
def test_the_header_is_a_field(fields: dict[str, object]) -> None:
    add_header(fields, ["90s"])
    assert fields["cancel_after"] == "90s"


@pytest.mark.parametrize("field", [90, 90.0, "90", "90s", "1m30s", "soon", 1, []])
def test_a_field_that_says_the_same_or_is_refused_anyway_stays(field: object) -> None:
    fields = {"cancel_after": field}
    add_header(fields, ["90s"])
    add_header(fields, [])
    assert fields == {"cancel_after": field}


def test_two_durations_are_a_conflict() -> None:
    with pytest.raises(InvalidRequestError, match="'Cancel-After' says \"90s\" and 'cancel_after' \"5m\"") as caught:
        add_header({"cancel_after": "5m"}, ["90s"])
    assert (caught.value.param, caught.value.code) == ("cancel_after", "conflicting_parameters")


@pytest.mark.parametrize("headers", [[""], ["soon"], ["4"], ["8d"], ["90s", "5m"]])
def test_a_wrong_header_is_named(headers: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="from 5 seconds to 7 days") as caught:
        add_header({}, headers)
    assert (caught.value.param, caught.value.code) == ("Cancel-After", "invalid_value")
