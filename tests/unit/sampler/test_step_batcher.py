from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.sampler.step_batcher import Load, StepBatcher

SMALL = Load("small", tokens=10, cfg_rows=2)
LARGE = Load("large", tokens=100, cfg_rows=2)


def batcher(*loads: Load, max_tokens: int = 1000) -> StepBatcher[int]:
    made = StepBatcher[int](max_tokens)
    for key, load in enumerate(loads):
        made.add(key, load)
    return made


def test_without_samples_there_is_no_pass() -> None:
    assert batcher().next_pass() == []


def test_one_shape_shares_a_pass_up_to_the_tokens() -> None:
    some = batcher(SMALL, SMALL, SMALL, SMALL, SMALL, max_tokens=60)
    assert some.next_pass() == [0, 1, 2]
    assert some.next_pass() == [3, 4, 0]


def test_a_sample_larger_than_a_pass_runs_alone() -> None:
    some = batcher(LARGE, LARGE, max_tokens=50)
    assert [some.next_pass() for _ in range(3)] == [[0], [1], [0]]


def test_shapes_take_turns() -> None:
    some = batcher(SMALL, LARGE, SMALL, LARGE)
    assert [some.next_pass() for _ in range(4)] == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_an_exact_sample_shares_with_none() -> None:
    some = batcher(SMALL, Load("small", 10, 2, exact=True), SMALL)
    assert [some.next_pass() for _ in range(3)] == [[0, 2], [1], [0, 2]]


def test_samples_of_different_loras_take_turns_as_shapes_do() -> None:
    """Whatever tells one from another: its name, or how much it counts."""
    kinds = [replace(SMALL, lora=lora) for lora in (None, ("ink", 1.0), ("ink", 0.5), None, ("ink", 1.0))]
    some = batcher(*kinds)
    assert [some.next_pass() for _ in range(4)] == [[0, 3], [1, 4], [2], [0, 3]]


def test_a_sample_that_was_removed_is_not_chosen_and_may_come_again() -> None:
    some = batcher(SMALL, SMALL)
    some.remove(0)
    assert some.next_pass() == [1]
    some.add(0, SMALL)
    assert sorted(some.next_pass()) == [0, 1]
    with pytest.raises(ValueError, match="already"):
        some.add(0, SMALL)
    with pytest.raises(KeyError):
        some.remove(7)


loads = st.builds(
    Load,
    shape=st.sampled_from("abc"),
    tokens=st.integers(1, 50),
    cfg_rows=st.integers(1, 2),
    exact=st.booleans(),
    lora=st.sampled_from((None, None, "ink")),
)


@given(st.lists(loads, min_size=1, max_size=12), st.integers(1, 200), st.data())
def test_every_pass_is_allowed_and_nobody_starves(these: list[Load], max_tokens: int, data: st.DataObject) -> None:
    some = batcher(*these, max_tokens=max_tokens)
    present = dict(enumerate(these))
    waited = dict.fromkeys(present, 0)
    following = len(these)
    for _ in range(30):
        chosen = some.next_pass()
        check_pass([present[key] for key in chosen], max_tokens)
        assert len(set(chosen)) == len(chosen)
        for key in present:
            waited[key] = 0 if key in chosen else waited[key] + 1
            assert waited[key] < max(12, len(present))
        if len(present) > 1 and data.draw(st.booleans()):
            removed = data.draw(st.sampled_from(sorted(present)))
            some.remove(removed)
            del present[removed], waited[removed]
        elif len(present) < 12 and data.draw(st.booleans()):
            present[following] = data.draw(loads)
            waited[following] = 0
            some.add(following, present[following])
            following += 1


def check_pass(chosen: list[Load], max_tokens: int) -> None:
    assert len({load.shape for load in chosen}) == 1
    if len(chosen) > 1:
        assert not any(load.exact for load in chosen)
        assert sum(load.pass_tokens for load in chosen) <= max_tokens
