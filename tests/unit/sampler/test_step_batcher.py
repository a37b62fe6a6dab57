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


def run(some: StepBatcher[int], took: float = 0) -> list[int]:
    """The next pass."""
    chosen = some.next_pass()
    some.count_pass(chosen, took)
    return chosen


def test_without_samples_there_is_no_pass() -> None:
    assert batcher().next_pass() == []


def test_one_shape_shares_a_pass_up_to_the_tokens() -> None:
    some = batcher(SMALL, SMALL, SMALL, SMALL, SMALL, max_tokens=60)
    assert [run(some, 6) for _ in range(2)] == [[0, 1, 2], [3, 4, 0]]


def test_a_sample_larger_than_a_pass_runs_alone() -> None:
    some = batcher(LARGE, LARGE, max_tokens=50)
    assert [run(some, 5) for _ in range(3)] == [[0], [1], [0]]


def test_shapes_of_one_cost_take_turns() -> None:
    some = batcher(SMALL, LARGE, SMALL, LARGE)
    assert [run(some, 3) for _ in range(4)] == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_a_small_sample_takes_many_steps_for_one_of_a_large_one() -> None:
    some = batcher(LARGE, SMALL)
    took = {0: 58, 1: 2}
    passes = [key for _ in range(300) for key in run(some, took[some.next_pass()[0]])]
    assert passes[:32] == [0, *[1] * 29, 0, 1]
    assert passes.count(1) == 29 * passes.count(0)


def test_a_small_sample_that_comes_while_a_large_one_runs_goes_next() -> None:
    some = batcher(LARGE)
    some.next_pass()
    some.add(1, SMALL)
    some.count_pass([0], 58)
    assert [run(some, 2) for _ in range(3)] == [[1]] * 3


def test_those_that_share_a_pass_have_its_time_between_them() -> None:
    """Two in passes of 40 have as much each as one alone in passes of 20."""
    some = batcher(LARGE, LARGE, SMALL)
    passes = [run(some, 40 if some.next_pass() == [0, 1] else 20) for _ in range(60)]
    assert passes.count([0, 1]) == passes.count([2]) == 30


def test_a_sample_is_due_after_the_longest_wait_whatever_its_pass_took() -> None:
    some = StepBatcher[int](1000, max_wait=10)
    some.add(0, LARGE)
    some.add(1, SMALL)
    assert [run(some, 1000), *(run(some, 1) for _ in range(6))] == [[0], [1], [1], [1], [1], [1], [0]]


def test_an_exact_sample_shares_with_none() -> None:
    some = batcher(SMALL, Load("small", 10, 2, exact=True), SMALL)
    assert [run(some) for _ in range(3)] == [[0, 2], [1], [0, 2]]


def test_samples_of_different_loras_take_turns_as_shapes_do() -> None:
    """Whatever tells one from another: its name, or how much it counts."""
    kinds = [replace(SMALL, lora=lora) for lora in (None, ("ink", 1.0), ("ink", 0.5), None, ("ink", 1.0))]
    some = batcher(*kinds)
    assert [run(some) for _ in range(4)] == [[0, 3], [1, 4], [2], [0, 3]]


def test_a_sample_that_was_removed_is_not_chosen_and_may_come_again() -> None:
    some = batcher(SMALL, SMALL)
    some.remove(0)
    assert run(some) == [1]
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


@given(st.lists(st.integers(1, 300), min_size=2, max_size=8), st.integers(1, 200))
def test_each_has_the_same_share_of_the_device(costs: list[int], passes: int) -> None:
    """What two have had never differs by more than the longest pass, and between two steps of a sample each other one
    has at most what its step takes and one pass more."""
    some = batcher(*(Load(n, cost, 1) for n, cost in enumerate(costs)))
    had, since = [0] * len(costs), [0] * len(costs)
    now = 0
    for _ in range(passes):
        (key,) = some.next_pass()
        assert now - since[key] <= len(costs) * costs[key] + sum(costs)
        some.count_pass([key], costs[key])
        had[key] += costs[key]
        now += costs[key]
        since[key] = now
        assert max(had) - min(had) <= max(costs)


MOST = 8  # samples at once, below


@given(st.lists(loads, min_size=1, max_size=MOST), st.integers(1, 200), st.data())
def test_every_pass_is_allowed_and_nobody_starves(these: list[Load], max_tokens: int, data: st.DataObject) -> None:
    """Whoever comes and goes, and however much each pass takes."""
    some = batcher(*these, max_tokens=max_tokens)
    present = dict(enumerate(these))
    waited, shares = dict.fromkeys(present, 0.0), dict.fromkeys(present, 0.0)
    following = len(these)
    longest = 0.0
    for _ in range(40):
        chosen = some.next_pass()
        check_pass([present[key] for key in chosen], max_tokens)
        assert len(set(chosen)) == len(chosen)
        took = data.draw(st.sampled_from((0, 1, 3, 50)))
        some.count_pass(chosen, took)
        longest = max(longest, took)
        for key in present:
            assert waited[key] <= MOST * shares[key] + 2 * MOST * longest
            waited[key] = 0 if key in chosen else waited[key] + took
        shares |= dict.fromkeys(chosen, took / len(chosen))
        if len(present) > 1 and data.draw(st.booleans()):
            removed = data.draw(st.sampled_from(sorted(present)))
            some.remove(removed)
            del present[removed], waited[removed], shares[removed]
        if len(present) < MOST and data.draw(st.booleans()):
            present[following] = data.draw(loads)
            waited[following] = shares[following] = 0.0
            some.add(following, present[following])
            following += 1


def test_no_stream_of_small_samples_holds_up_a_large_one() -> None:
    """Each comes as the one before it goes, after one step."""
    some = batcher(LARGE)
    some.count_pass(some.next_pass(), 50)
    for number in range(1, 100):
        some.add(number, SMALL)
        if 0 in (chosen := run(some, 1)):
            break
        some.remove(chosen[0])
    assert number == 51


def check_pass(chosen: list[Load], max_tokens: int) -> None:
    assert len({load.shape for load in chosen}) == 1
    if len(chosen) > 1:
        assert not any(load.exact for load in chosen)
        assert sum(load.pass_tokens for load in chosen) <= max_tokens
