"""Times in the options of a listing."""

from datetime import datetime

import pytest

from serve_app.cli.videos import unix_seconds
from serve_app.client.errors import UsageError


def test_times_are_seconds_or_dates() -> None:
    assert unix_seconds("1700000000.5") == 1_700_000_000.5
    assert unix_seconds("2026-11-21T09:30+00:00") == 1_795_253_400
    assert unix_seconds("2026-11-21") == datetime(2026, 11, 21).timestamp()
    for wrong in ("", "yesterday", "-5", "1e9", "2026-13-01"):
        with pytest.raises(UsageError, match="2026-11-21"):
            unix_seconds(wrong)
