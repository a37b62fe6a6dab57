"""Groups within the bound, the longest first, and answers back in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.proteins.batches import group_by_tokens, in_order


def test_groups_are_filled_longest_first() -> None:
    assert group_by_tokens([3, 1200, 500, 400, 124, 900], 1024) == [(1,), (5,), (2, 3, 4), (0,)]
    assert group_by_tokens([], 1024) == []


@given(st.lists(st.integers(3, 60)), st.integers(1, 100))
def test_groups_hold_each_query_once_and_answers_come_back_in_order(counts: list[int], bound: int) -> None:
    groups = group_by_tokens(counts, bound)
    assert all(sum(counts[i] for i in group) <= bound or len(group) == 1 for group in groups)
    lengths = [counts[i] for group in groups for i in group]
    assert lengths == sorted(counts, reverse=True)
    # None could have been joined with the next.
    assert all(sum(counts[i] for i in (*a, b[0])) > bound for a, b in zip(groups, groups[1:], strict=False))
    assert in_order(groups, [[f"answer {i}" for i in group] for group in groups]) == [
        f"answer {i}" for i in range(len(counts))
    ]


def test_a_lost_answer_is_noticed() -> None:
    with pytest.raises(ValueError):
        in_order([(0, 1)], [["one"]])
    with pytest.raises(ValueError):
        in_order([(0, 1), (2,)], [["one", "two"]])
