import pytest

from deployments.messages import Stage
from serve_app.scheduling.scaling.start_times import StartTimes

SAMPLING = Stage.SAMPLING


def test_nominal_until_measured() -> None:
    times = StartTimes(nominal_s=120.0)
    assert times.start_s(SAMPLING) == 120.0 and not times.measured
    times.set_target(SAMPLING, 0, 0, 0.0)
    times.set_target(SAMPLING, 1, 0, 10.0)
    assert times.starting_in_s(SAMPLING, 40.0) == [90.0]
    assert times.note_ready(SAMPLING, 60.0) == 50.0
    assert times.measured == {SAMPLING: 50.0}
    assert times.start_s(Stage.DECODING) == 120.0


def test_the_first_to_come_was_asked_for_first() -> None:
    times = StartTimes(120.0)
    for target, now in ((0, 0.0), (1, 0.0), (3, 100.0)):
        times.set_target(SAMPLING, target, 0, now)
    assert times.note_ready(SAMPLING, 200.0) == 200.0
    assert times.note_ready(SAMPLING, 200.0) == pytest.approx(0.7 * 200 + 0.3 * 100)
    assert len(times.starting_in_s(SAMPLING, 200.0)) == 1


def test_a_replacement_and_one_that_was_there_teach_nothing() -> None:
    times = StartTimes(120.0)
    assert times.note_ready(SAMPLING, 5.0) is None
    times.set_target(SAMPLING, 2, 1, 6.0)  # after a restart: who knows when the second one was asked for
    assert times.note_ready(SAMPLING, 7.0) is None
    assert times.start_s(SAMPLING) == 120.0


def test_what_is_not_wanted_any_more_is_not_waited_for() -> None:
    times = StartTimes(120.0, give_up_s=1000.0)
    times.set_target(SAMPLING, 0, 0, 0.0)
    times.set_target(SAMPLING, 3, 0, 0.0)
    times.set_target(SAMPLING, 1, 0, 5.0)
    assert len(times.starting_in_s(SAMPLING, 5.0)) == 1
    times.set_target(SAMPLING, 1, 0, 1001.0)
    assert times.starting_in_s(SAMPLING, 1001.0) == []


def test_what_was_measured_before_a_restart_goes_on() -> None:
    times = StartTimes(120.0)
    times.restore({SAMPLING: 33.0})
    assert times.start_s(SAMPLING) == 33.0
    times.set_target(Stage.DECODING, 0, 0, 0.0)
    times.set_target(Stage.DECODING, 1, 0, 0.0)
    times.note_ready(Stage.DECODING, 7.0)
    times.restore({SAMPLING: 33.0, Stage.DECODING: 99.0})
    assert times.measured == {SAMPLING: 33.0, Stage.DECODING: 7.0}
