"""The forecast: list scheduling over slots."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.scheduling.estimates import Forecast, QueuedWork, forecast

# Multiples of 1/8 add up exactly, so that times can be compared for equality.
seconds = st.integers(0, 800).map(lambda n: n / 8)
queues = st.lists(st.tuples(seconds, seconds), max_size=30).map(
    lambda times: [QueuedWork(f"job-{i}", wall, tail) for i, (wall, tail) in enumerate(times)]
)
held = st.lists(seconds, max_size=12)


def jobs(*walls: float, tail: float = 0.0) -> list[QueuedWork]:
    return [QueuedWork(name, wall, tail) for name, wall in zip("abcdef", walls, strict=False)]


def starts(expected: dict[str, Forecast]) -> list[float]:
    return [place.starts_in_s for place in expected.values()]


def test_open_slots_are_filled_at_once_and_the_rest_follows_as_they_end() -> None:
    assert starts(forecast(jobs(10, 4, 3, 5), [], 2)) == [0, 0, 4, 7]


def test_held_slots_are_waited_for() -> None:
    assert starts(forecast(jobs(10, 10, 10), [6, 2], 2)) == [2, 6, 12]
    assert starts(forecast(jobs(10, 10, 10), [6, 2], 3)) == [0, 2, 6]


def test_a_job_finishes_after_its_slot_and_its_later_stages_but_holds_only_the_slot() -> None:
    assert forecast(jobs(10, 10, tail=3), [5], 1) == {"a": Forecast(5, 18), "b": Forecast(15, 28)}


def test_without_slots_nothing_is_forecast() -> None:
    assert forecast(jobs(1, 2), [], 0) == {}
    assert forecast(jobs(1, 2), [3], 0) == {}
    assert forecast(jobs(1, 2), [3], -1) == {}


def test_nobody_waits() -> None:
    assert forecast([], [1, 2], 2) == {}


def test_a_running_job_that_should_have_ended_ends_now() -> None:
    assert starts(forecast(jobs(1, 1), [-20], 1)) == [0, 1]


def test_slots_that_close_are_not_filled_again() -> None:
    assert starts(forecast(jobs(10, 10), [1, 2, 7], 1)) == [7, 17]
    assert starts(forecast(jobs(10, 10), [7, 1, 2], 2)) == [2, 7]


@given(queues, held, st.integers(1, 10))
def test_all_are_forecast_in_the_order_of_the_queue(
    waiting: list[QueuedWork], running: list[float], slots: int
) -> None:
    expected = forecast(waiting, running, slots)
    assert list(expected) == [job.job_id for job in waiting]
    assert starts(expected) == sorted(starts(expected))
    for job in waiting:
        place = expected[job.job_id]
        assert place.finishes_in_s == place.starts_in_s + job.wall_s + job.tail_s


@given(queues, held, st.integers(1, 10))
def test_no_slot_is_booked_twice_or_left_empty(waiting: list[QueuedWork], running: list[float], slots: int) -> None:
    expected = forecast(waiting, running, slots)
    spans = [(0.0, left) for left in running]
    for job in waiting:
        start = expected[job.job_id].starts_in_s
        assert held_at(spans, start) < slots
        moments = {0.0} | {end for _, end in spans}
        assert all(held_at(spans, moment) >= slots for moment in moments if moment < start)
        spans.append((start, start + job.wall_s))


def held_at(spans: list[tuple[float, float]], moment: float) -> int:
    return sum(start <= moment < end for start, end in spans)


@given(st.integers(1, 30), seconds, seconds, held, st.integers(1, 10))
def test_equal_jobs_finish_in_the_order_of_the_queue(
    count: int, wall_s: float, tail_s: float, running: list[float], slots: int
) -> None:
    expected = forecast([QueuedWork(str(i), wall_s, tail_s) for i in range(count)], running, slots)
    ends = [place.finishes_in_s for place in expected.values()]
    assert ends == sorted(ends)


@given(queues.filter(bool), held, st.integers(1, 10), seconds)
def test_what_comes_later_or_takes_longer_behind_changes_nothing_before_it(
    waiting: list[QueuedWork], running: list[float], slots: int, more: float
) -> None:
    first = forecast(waiting[:-1], running, slots)
    longer = replace(waiting[-1], wall_s=waiting[-1].wall_s + more)
    with_longer = forecast([*waiting[:-1], longer], running, slots)
    assert {job_id: with_longer[job_id] for job_id in first} == first


@given(queues, held, st.integers(1, 10))
def test_one_more_slot_delays_nobody(waiting: list[QueuedWork], running: list[float], slots: int) -> None:
    few, more = forecast(waiting, running, slots), forecast(waiting, running, slots + 1)
    assert all(b <= a for a, b in zip(starts(few), starts(more), strict=True))


@pytest.mark.parametrize("slots", [1, 3])
def test_the_whole_work_is_done_without_a_gap(slots: int) -> None:
    expected = forecast(jobs(2, 2, 2, 2, 2, 2), [], slots)
    assert max(place.finishes_in_s for place in expected.values()) == 12 / slots
