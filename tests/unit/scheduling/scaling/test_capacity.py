"""How many replicas are wanted, by whether the work begins in time."""

from dataclasses import replace
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from deployments.messages import VIDEO_STAGES, Stage
from serve_app.scheduling.scaling.capacity import (
    MARGIN_S,
    MAX_DEALT,
    PLANNED_SHARE,
    Demand,
    Fleet,
    LiveJob,
    demand,
)
from serve_app.scheduling.scaling.capacity import replicas_needed as needed

NONE = Fleet(running=0, starting=(), slots=1, start_s=100.0, minimum=0, maximum=50)
TEN = replace(NONE, running=10)
SECONDS = {Stage.ENCODING: 1.0, Stage.SAMPLING: 300.0, Stage.DECODING: 10.0}
NEW = LiveJob(Stage.ENCODING, is_running=False, wait_left_s=600.0, cancelled_in_s=inf, seconds=SECONDS)


def waits(seconds: float = 300.0, due_in_s: float = 600.0, comes_in_s: float = 0.0) -> Demand:
    return Demand(seconds, comes_in_s, due_in_s)


def runs(seconds: float = 300.0) -> Demand:
    return Demand(seconds, 0.0, 0.0, is_running=True)


def test_without_work_nothing_is_needed() -> None:
    assert needed([], TEN) == 0
    assert needed([], replace(TEN, minimum=2)) == 2


def test_one_job_wakes_one_replica() -> None:
    assert needed([waits()], NONE) == 1


def test_a_burst_gets_all_replicas_at_once() -> None:
    # Three after one another begin in time: at 100, 400 and 700 s.
    assert needed([waits(due_in_s=700.0)] * 30, NONE) == 10
    assert needed([waits(due_in_s=699.0)] * 30, NONE) == 15
    assert needed([waits(due_in_s=0.0)] * 30, NONE) == 30


def test_never_more_than_the_maximum_nor_more_than_jobs() -> None:
    assert needed([waits(due_in_s=0.0)] * 3, NONE) == 3
    assert needed([waits(due_in_s=0.0)] * 300, NONE) == 50


def test_what_runs_is_not_moved() -> None:
    assert needed([runs()] * 7, TEN) == 7
    assert needed([runs()] * 7, replace(TEN, slots=2)) == 4


def test_a_slot_that_is_free_in_time_is_used() -> None:
    assert needed([runs(50.0)] * 10 + [waits(due_in_s=60.0)] * 10, TEN) == 10
    assert needed([runs(500.0)] * 10 + [waits(due_in_s=200.0)] * 3, TEN) == 13


def test_a_replica_that_would_come_too_late_is_not_asked_for() -> None:
    assert needed([runs(90.0), waits(due_in_s=0.0)], replace(NONE, running=1)) == 1
    assert needed([runs(130.0), waits(due_in_s=0.0)], replace(NONE, running=1)) == 2


def test_many_short_jobs_that_are_late_share_replicas() -> None:
    assert needed([waits(1.0, due_in_s=0.0)] * 50, NONE) == 2


def test_slots_share_the_device_of_a_replica() -> None:
    assert needed([waits(due_in_s=0.0)] * 4, replace(NONE, slots=2)) == 2
    # With two slots the first two end at 700, not at 400.
    assert needed([waits(due_in_s=450.0)] * 4, replace(NONE, slots=1)) == 2
    assert needed([waits(due_in_s=450.0)] * 6, replace(NONE, slots=2)) == 3


def test_replicas_that_start_are_counted_from_when_they_are_there() -> None:
    starting = replace(NONE, starting=(10.0, 10.0))
    assert needed([waits(due_in_s=320.0)] * 4, starting) == 2
    assert needed([waits(due_in_s=305.0)] * 4, starting) == 4


def test_a_little_work_may_wait_while_there_is_no_replica() -> None:
    assert needed([waits(20.0)], NONE, activation_s=60.0) == 0
    assert needed([waits(20.0)] * 3, NONE, activation_s=60.0) == 1
    assert needed([waits(20.0, due_in_s=105.0)], NONE, activation_s=60.0) == 1
    assert needed([waits(20.0)], replace(NONE, running=1), activation_s=60.0) == 1


def test_a_job_is_demand_of_every_stage_before_it_is_there() -> None:
    wanted = {stage: demand(NEW, stage) for stage in VIDEO_STAGES}
    assert wanted[Stage.ENCODING] == Demand(1.0, 0.0, 60.0)
    assert wanted[Stage.SAMPLING] == Demand(300.0, 1.0, 1.0 + 290.0)
    assert wanted[Stage.DECODING] == Demand(10.0, 301.0, 301.0 + 290.0)
    assert needed([d for d in [wanted[Stage.SAMPLING]] if d], NONE) == 1


def test_a_later_stage_is_woken_a_start_before_the_job_comes() -> None:
    sampling = replace(NEW, stage=Stage.SAMPLING, is_running=True)
    for left_s, replicas in ((300.0, 0), (111.0, 0), (110.0, 1), (5.0, 1)):
        job = replace(sampling, seconds={**SECONDS, Stage.SAMPLING: left_s})
        found = demand(job, Stage.DECODING)
        assert found is not None and needed([found], NONE) == replicas


def test_a_stage_that_is_behind_a_job_has_no_demand() -> None:
    assert demand(replace(NEW, stage=Stage.DECODING), Stage.SAMPLING) is None
    running = demand(replace(NEW, stage=Stage.SAMPLING, is_running=True), Stage.SAMPLING)
    assert running is not None and running.is_running


def test_a_deadline_is_kept_by_beginning_earlier() -> None:
    found = demand(replace(NEW, cancelled_in_s=500.0), Stage.SAMPLING)
    assert found is not None and found.due_in_s == 1.0 + PLANNED_SHARE * (500.0 - 311.0) - MARGIN_S
    late = demand(replace(NEW, cancelled_in_s=5.0), Stage.SAMPLING)
    assert late is not None and late.due_in_s == 1.0


def test_the_end_of_a_long_queue_counts_too() -> None:
    fleet = replace(NONE, maximum=100_000)
    short = needed([waits(10.0, due_in_s=1000.0)] * MAX_DEALT, fleet)
    long = needed([waits(10.0, due_in_s=1000.0)] * (MAX_DEALT * 4), fleet)
    assert 3.5 * short < long < 4.5 * short


def test_slots_are_kept_for_jobs_that_have_not_come() -> None:
    assert needed([], replace(NONE, kept=3)) == 3
    assert needed([], replace(NONE, kept=3, slots=2)) == 2
    assert needed([], replace(NONE, kept=80)) == 50
    assert needed([waits(1.0)], replace(NONE, kept=3), activation_s=60.0) == 3
    # Who runs in them is parked for an urgent job: they are not kept beside the others.
    assert needed([runs()] * 5, replace(TEN, kept=3)) == 5


@given(
    st.lists(st.tuples(st.floats(1, 500), st.floats(0, 2000), st.booleans()), max_size=40),
    st.integers(0, 20),
    st.integers(1, 4),
    st.floats(0, 300),
)
def test_more_work_never_needs_fewer(
    jobs: list[tuple[float, float, bool]], running: int, slots: int, start_s: float
) -> None:
    fleet = Fleet(running, (), slots, start_s, 0, 30)
    demands = [Demand(seconds, 0.0, due, is_running) for seconds, due, is_running in jobs]
    all_of_it = needed(demands, fleet)
    assert 0 <= all_of_it <= 30
    assert bool(demands) == bool(all_of_it)
    assert needed(demands[:-1], fleet) <= all_of_it


def test_what_is_late_is_not_put_off_again() -> None:
    # Due by now: it begins in the slot that is free in 60 s, or on the replica that is there in 20.
    late, one = waits(due_in_s=0.0), replace(NONE, running=1)
    assert needed([runs(60.0), late], one) == 1
    assert needed([runs(60.0), late], replace(one, starting=(20.0,))) == 2
    assert needed([runs(60.0), replace(late, due_in_s=70.0)], replace(one, starting=(20.0,))) == 1
    # What is there and idle is as good as the one that starts.
    assert needed([runs(60.0), late], replace(one, running=2, starting=(20.0,))) == 2
