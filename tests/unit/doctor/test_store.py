"""What a doctor that was killed left in the store."""

from datetime import UTC, datetime, timedelta

from deployments.keys import parse_key
from deployments.storage.object_store import ListedObject
from serve_app.doctor.checks.store import PREFIX, left_behind
from serve_app.retention.orphans import MARKER_PREFIX

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def entry(name: str, minutes: float | None) -> ListedObject:
    return ListedObject(f"{PREFIX}{name}", None if minutes is None else NOW - timedelta(minutes=minutes))


def test_what_is_older_than_an_hour_by_the_stores_clock_is_left_behind() -> None:
    listed = [entry("own", 0), entry("young", 59), entry("old", 61), entry("ageless", None)]
    assert left_behind(listed, f"{PREFIX}own") == [f"{PREFIX}old"]
    assert left_behind(listed, f"{PREFIX}absent") == [], "the store's time is not known"


def test_no_sweeper_takes_it_for_its_own() -> None:
    assert parse_key(f"{PREFIX}{'0' * 32}") is None and not PREFIX.startswith(MARKER_PREFIX)
