from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.messages import Failed, Stage
from serve_app.config import JobSettings
from serve_app.jobs import Job, JobError, JobState
from serve_app.scheduling.retries import (
    LONGEST_REMAKE_PAUSE_S,
    MAX_DEATHS,
    REPLICA_DIED,
    Retry,
    after_failure,
    remake_pause,
)
from tests.support.registry.world import SPEC

SETTINGS = JobSettings(max_attempts=3, retry_pause_s=1, max_retry_pause_s=3)
JOB = Job("a", "mochi-1", SPEC, JobState.SAMPLING, Stage.SAMPLING, 1, 0.0)
DIED = Failed(REPLICA_DIED, "gone", transient=True)


def after(
    job: Job, event: Failed, progress: float = 0.5, *, alone: bool = True, jitter: float = 0.0
) -> Retry | JobError:
    return after_failure(job, event, progress=progress, alone=alone, settings=SETTINGS, jitter=jitter)


def test_the_pause_doubles_up_to_its_maximum_and_jitter_takes_up_to_half() -> None:
    event = Failed("internal_error", "x", transient=True)
    assert after(JOB, event) == Retry(2, 1.0, 0, None)
    assert after(replace(JOB, attempt=2), event) == Retry(3, 2.0, 0, None)
    assert after(replace(JOB, attempt=2), event, jitter=1.0) == Retry(3, 1.0, 0, None)


def test_the_last_attempt_and_a_permanent_error_end_the_job() -> None:
    transient = Failed("internal_error", "x", transient=True)
    last = after(replace(JOB, attempt=3), transient)
    assert last == JobError("internal_error", "x (attempt 3 of 3, the last one)")
    assert after(JOB, replace(transient, transient=False)) == JobError("internal_error", "x")


def test_an_outage_counts_no_attempt_however_often() -> None:
    for code in ("storage_unavailable", "storage_refused", "replica_unhealthy", "replica_gone"):
        assert after(replace(JOB, attempt=3), Failed(code, "x", transient=True)) == Retry(3, 2.0, 0, None)


def test_the_pause_before_an_output_is_made_again_doubles_up_to_two_minutes() -> None:
    assert [remake_pause(number, SETTINGS) for number in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 8.0]
    assert remake_pause(50, SETTINGS) == LONGEST_REMAKE_PAUSE_S == 120
    assert remake_pause(50, JobSettings(max_retry_pause_s=500)) == 500


def test_a_death_makes_a_suspect_until_its_place_is_passed() -> None:
    assert after(JOB, DIED, alone=False) == Retry(1, 1.0, 1, 0.5)
    suspect = replace(JOB, deaths=1, died_at=0.5)
    assert replace(suspect, progress=0.5).suspect and not replace(suspect, progress=0.51).suspect
    assert after(replace(suspect, deaths=3), DIED, progress=0.6, alone=False) == Retry(1, 1.0, 1, 0.6)


def test_what_happens_to_a_suspect_in_company_is_not_held_against_it() -> None:
    suspect = replace(JOB, deaths=3, died_at=0.5)
    assert after(suspect, DIED, alone=False) == Retry(1, 3.0, 3, 0.5)
    broke = replace(DIED, code="device_broken")
    assert after(suspect, broke, alone=False) == Retry(2, 1.0, 3, 0.5)


@pytest.mark.parametrize("progress", [0.5, 0.3])
def test_deaths_alone_at_or_before_the_same_place_end_the_job(progress: float) -> None:
    suspect = replace(JOB, deaths=1, died_at=0.5)
    assert after(suspect, DIED, progress) == Retry(1, 2.0, 2, 0.5), "the place is the furthest where one died"
    error = after(replace(suspect, deaths=3), DIED, progress)
    assert isinstance(error, JobError) and error.code == REPLICA_DIED
    assert "4 replicas died at the same place" in error.message and "no other job in them" in error.message


Deaths = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30)


@given(Deaths)
def test_no_number_of_deaths_in_company_ends_a_job_or_counts_an_attempt(deaths: list[tuple[float, bool]]) -> None:
    job = JOB
    for progress, _ in deaths:
        outcome = after(job, DIED, progress, alone=False)
        assert isinstance(outcome, Retry) and outcome.attempt == 1
        job = replace(job, deaths=outcome.deaths, died_at=outcome.died_at)


@given(Deaths)
def test_a_job_is_blamed_for_deaths_alone_at_one_place_and_for_no_fewer(deaths: list[tuple[float, bool]]) -> None:
    job, alone_here = JOB, 0
    for progress, alone in deaths:
        is_suspect = job.suspect_at(progress)
        alone_here = alone_here + alone if is_suspect else 0
        outcome = after(job, DIED, progress, alone=alone and is_suspect)
        assert isinstance(outcome, JobError) == (alone_here == MAX_DEATHS[REPLICA_DIED] - 1)
        if isinstance(outcome, JobError):
            break
        job = replace(job, deaths=outcome.deaths, died_at=outcome.died_at)


def test_memory_that_runs_out_twice_at_one_place_ends_the_job() -> None:
    event = Failed("out_of_memory", "no memory left", transient=True)
    assert after(JOB, event) == Retry(2, 1.0, 1, 0.5)
    error = after(replace(JOB, deaths=1, died_at=0.5), event)
    assert isinstance(error, JobError) and error.code == "out_of_memory" and "ran out of memory" in error.message


def test_another_failure_leaves_a_suspect_one() -> None:
    suspect = replace(JOB, deaths=1, died_at=0.5)
    assert after(suspect, Failed("replica_lost", "x", transient=True)) == Retry(2, 1.0, 1, 0.5)


BROKE = Failed("device_broken", "the device of the replica is broken", transient=True)


def test_a_device_that_breaks_counts_no_attempt_and_makes_a_suspect() -> None:
    assert after(JOB, BROKE) == Retry(1, 2.0, 1, 0.5)
    assert after(replace(JOB, attempt=3), BROKE) == Retry(3, 2.0, 1, 0.5), "not even of the last"


def test_the_fourth_device_at_the_same_place_ends_the_job() -> None:
    error = after(replace(JOB, deaths=3, died_at=0.5), BROKE, 0.4)
    assert isinstance(error, JobError) and error.code == "device_broken"
    assert "4 replicas lost their device at the same place" in error.message


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_a_job_that_breaks_device_after_device_ends_whatever_its_places(places: list[float]) -> None:
    """The first costs no attempt, each further one does."""
    job, breaks = JOB, 0
    for progress in places:
        breaks += 1
        outcome = after(job, BROKE, progress)
        if isinstance(outcome, JobError):
            break
        job = replace(job, attempt=outcome.attempt, deaths=outcome.deaths, died_at=outcome.died_at)
    assert isinstance(outcome, JobError) and outcome.code == "device_broken"
    assert breaks <= SETTINGS.max_attempts + 1


def test_numbers_that_cease_at_one_place_twice_are_the_requests_own() -> None:
    event = Failed("non_finite_latents", "sampling gave NaN or infinity in step 3 of 8", transient=True)
    assert after(JOB, event) == Retry(2, 1.0, 1, 0.5)
    assert after(replace(JOB, attempt=2, deaths=1, died_at=0.5), event, 0.6) == Retry(3, 2.0, 1, 0.6)
    error = after(replace(JOB, attempt=2, deaths=1, died_at=0.5), event)
    assert isinstance(error, JobError) and error.code == "non_finite_latents"
    assert "NaN or infinity 2 times at the same place" in error.message and "guidance_scale" in error.message
