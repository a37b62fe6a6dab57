import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.messages import Stage
from serve_app.errors import IllegalMoveError
from serve_app.jobs import (
    FINAL,
    MOVES,
    NEXT_STAGE,
    RUNNING,
    JobState,
    check_move,
    overall_progress,
    retry_pause,
)


def test_every_state_has_its_moves() -> None:
    assert set(MOVES) == set(JobState)
    assert all(not MOVES[state] for state in FINAL)
    assert {JobState(stage) for stage in Stage} == RUNNING


def test_only_decoding_completes_a_job() -> None:
    assert [s for s in JobState if JobState.COMPLETED in MOVES[s]] == [JobState.DECODING]


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
    values = [overall_progress(stage, done, total) for stage in Stage]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)
    for stage, following in NEXT_STAGE.items():
        if following is not None:
            assert overall_progress(stage, 1, 1) == pytest.approx(overall_progress(following, 0, 1))


def test_pauses_double_up_to_the_maximum() -> None:
    assert [retry_pause(a, 0.5, 3.0) for a in (2, 3, 4, 5, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]
