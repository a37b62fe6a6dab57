"""Byte ranges of a request as RFC 9110 has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import RangeNotWithinFileError
from serve_app.ingress.routes.content import parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-499", (0, 500)),
        ("bytes=500-999", (500, 500)),
        ("bytes=500-", (500, 500)),
        ("bytes=999-", (999, 1)),
        ("bytes=-1", (999, 1)),
        ("bytes=-500", (500, 500)),
        ("bytes=-5000", (0, 1000)),
        ("bytes=900-5000", (900, 100)),
        ("BYTES=1-2", (1, 2)),
        ("bytes= 1-2 ", (1, 2)),
        ("bytes=0-" + "9" * 5000, (0, 1000)),
    ],
)
def test_a_range_of_a_file_of_1000_bytes(header: str, expected: tuple[int, int]) -> None:
    assert parse_range(header, 1000) == expected


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-2", "bytes=0-1,5-6", "items=0-5", "bytes=1--2"]
    + ["bytes=+1-2", "bytes=١-٢", "bytes=0x1-2", "0-5", "bytes=1 2-3"],
)
def test_what_is_no_single_range_means_the_whole_file(header: str | None) -> None:
    assert parse_range(header, 1000) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [("bytes=1000-", 1000), ("bytes=1000-2000", 1000), ("bytes=-0", 1000), ("bytes=0-", 0), ("bytes=-5", 0)],
)
def test_a_range_behind_the_end_is_refused(header: str, size: int) -> None:
    with pytest.raises(RangeNotWithinFileError, match=str(size)) as caught:
        parse_range(header, size)
    assert caught.value.headers == {"Content-Range": f"bytes */{size}"}


def test_a_very_long_range_is_quoted_in_part() -> None:
    with pytest.raises(RangeNotWithinFileError) as caught:
        parse_range("bytes=" + "9" * 5000 + "-", 1000)
    assert "(5007 characters)" in caught.value.message
    assert len(caught.value.message) < 200


@given(first=st.integers(0, 60), last=st.none() | st.integers(0, 60), suffix=st.booleans(), size=st.integers(0, 50))
def test_a_range_is_what_slicing_gives(first: int, last: int | None, suffix: bool, size: int) -> None:
    data = bytes(range(size))
    if suffix:
        header, expected = f"bytes=-{first}", data[max(0, size - first) :]
    else:
        header = f"bytes={first}-{'' if last is None else last}"
        expected = data[first:] if last is None else data[first : last + 1]
    if not suffix and last is not None and last < first:
        assert parse_range(header, size) is None
    elif not expected:
        with pytest.raises(RangeNotWithinFileError):
            parse_range(header, size)
    else:
        found = parse_range(header, size)
        assert found is not None
        assert data[found[0] : found[0] + found[1]] == expected
        assert found[1] == len(expected)
