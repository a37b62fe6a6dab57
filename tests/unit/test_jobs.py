import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.messages import STAGES, VIDEO_STAGES, Stage
from serve_app.config import RetentionSettings
from serve_app.errors import IllegalMoveError
from serve_app.jobs import (
    FINAL,
    MOVES,
    NEXT_STAGE,
    RUNNING,
    Expiry,
    Job,
    JobState,
    check_move,
    expires_at,
    overall_progress,
    retry_pause,
)
from tests.support.registry.world import SPEC


def test_every_state_has_its_moves() -> None:
    assert set(MOVES) == set(JobState)
    assert all(not MOVES[state] for state in FINAL)
    assert {JobState(stage) for stage in Stage} == RUNNING


def test_only_the_last_stage_completes_a_job() -> None:
    last = {JobState(stages[-1]) for stages in STAGES.values()}
    assert {s for s in JobState if JobState.COMPLETED in MOVES[s]} == last


@given(st.sampled_from(JobState), st.sampled_from(JobState))
def test_check_move_follows_the_table(old: JobState, new: JobState) -> None:
    if new in MOVES[old]:
        check_move(old, new)
    else:
        with pytest.raises(IllegalMoveError, match=f"from {old} to {new}"):
            check_move(old, new)


def test_the_stages_are_a_chain() -> None:
    assert NEXT_STAGE[Stage.ENCODING] is Stage.SAMPLING
    assert NEXT_STAGE[Stage.SAMPLING] is Stage.DECODING
    assert NEXT_STAGE[Stage.DECODING] is None


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_progress_never_falls_from_stage_to_stage(share: tuple[int, int]) -> None:
    done, total = share
    values = [overall_progress(stage, done, total) for stage in VIDEO_STAGES]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)
    for stage, following in NEXT_STAGE.items():
        if following is not None:
            assert overall_progress(stage, 1, 1) == pytest.approx(overall_progress(following, 0, 1))


def test_pauses_double_up_to_the_maximum() -> None:
    assert [retry_pause(a, 0.5, 3.0) for a in (2, 3, 4, 5, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(
    completed_at=st.floats(1.6e9, 2e9),
    days=st.floats(1e-6, 4000),
    off=st.floats(-3, 3),
    state=st.sampled_from([JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED]),
)
def test_a_job_has_expired_from_the_second_on_that_clients_are_told(
    completed_at: float, days: float, off: float, state: JobState
) -> None:
    job = Job("a", "m", SPEC, state, Stage.DECODING, 1, 0.0, completed_at=completed_at)
    retention = RetentionSettings(completed_days=days, failed_days=days)
    told = expires_at(job, retention)
    assert told is not None
    assert Expiry.at(retention, told).has_passed(job)
    assert not Expiry.at(retention, told - 0.001).has_passed(job)
    assert Expiry.at(retention, told + off).has_passed(job) is (told + off >= told)


def test_what_is_kept_for_ever_and_what_has_not_ended_does_not_expire() -> None:
    job = Job("a", "m", SPEC, JobState.COMPLETED, Stage.DECODING, 1, 0.0, completed_at=1.0)
    forever = RetentionSettings(completed_days=None, failed_days=1)
    assert expires_at(job, forever) is None and not Expiry.at(forever, 1e12).has_passed(job)
    waiting = Job("a", "m", SPEC, JobState.QUEUED, Stage.ENCODING, 1, 0.0)
    assert expires_at(waiting, RetentionSettings()) is None
    assert not Expiry.at(RetentionSettings(), 1e12).has_passed(waiting)
