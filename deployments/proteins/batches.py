"""The queries of a request as groups that are each computed in one pass, and their answers in the request's order."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

Result = TypeVar("Result")

CPU_TOKENS = 1024
"""Of one pass: as many fill a core, and more gain nothing there."""


def group_by_tokens(token_counts: Sequence[int], max_tokens: int = CPU_TOKENS) -> list[tuple[int, ...]]:
    """The indexes of queries in groups of at most `max_tokens` together, the longest first.

    A query that is longer than the bound is a group of its own. Lengths that are alike come together.
    """
    groups: list[tuple[int, ...]] = []
    group: list[int] = []
    room = max_tokens
    for index in sorted(range(len(token_counts)), key=lambda index: -token_counts[index]):
        if group and token_counts[index] > room:
            groups.append(tuple(group))
            group, room = [], max_tokens
        group.append(index)
        room -= token_counts[index]
    return [*groups, tuple(group)] if group else groups


def in_order(groups: Sequence[Sequence[int]], results: Iterable[Sequence[Result]]) -> list[Result]:
    """The results of all queries in their own order.

    Args:
        groups: as `group_by_tokens` makes them.
        results: of each group, in its order.

    Raises:
        ValueError: a group has more or fewer results than queries, or there are more or fewer groups.
    """
    by_index = {
        index: result
        for group, its_results in zip(groups, results, strict=True)
        for index, result in zip(group, its_results, strict=True)
    }
    return [by_index[index] for index in range(len(by_index))]
