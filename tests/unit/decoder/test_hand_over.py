"""Pieces from one thread to another: order, bounds, and the end of both when one fails."""

import contextvars
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.decoder.hand_over import hand_over

BOUND_S = 30.0


class Broken(Exception):
    pass


@given(st.lists(st.integers() | st.none()), st.integers(1, 4))
def test_every_piece_is_taken_in_order(pieces: list[int | None], waiting: int) -> None:
    taken: list[int | None] = []
    hand_over(pieces, taken.append, waiting)
    assert taken == pieces


def test_pieces_are_made_here_and_taken_in_one_other_thread() -> None:
    variable = contextvars.ContextVar("variable", default="")
    variable.set("of the caller")
    seen: set[tuple[int, str]] = set()
    hand_over(range(5), lambda piece: seen.add((threading.get_ident(), variable.get())), waiting=2)
    ((thread, value),) = seen
    assert thread != threading.get_ident() and value == "of the caller"


def test_the_next_is_made_while_one_is_taken() -> None:
    second_is_made = threading.Event()

    def pieces() -> Iterator[int]:
        yield 1
        second_is_made.set()
        yield 2

    def take(piece: int) -> None:
        assert second_is_made.wait(BOUND_S)

    hand_over(pieces(), take, waiting=1)


@given(st.integers(1, 4))
def test_no_more_than_allowed_wait(waiting: int) -> None:
    made = 0
    ahead: list[int] = []
    enough = threading.Semaphore(0)

    def pieces() -> Iterator[int]:
        nonlocal made
        for piece in range(3 * waiting):
            made += 1
            enough.release()
            yield piece

    def take(piece: int) -> None:
        # Until as many as may be are made, or all: one that is being taken, those that wait, one that finds no room.
        enough.acquire(timeout=BOUND_S)
        ahead.append(made - piece)

    hand_over(pieces(), take, waiting)
    assert max(ahead) <= waiting + 2


@pytest.mark.parametrize("waiting", [1, 2])
def test_a_failed_taking_ends_the_making(waiting: int) -> None:
    made: list[int] = []
    failed = threading.Event()

    def pieces() -> Iterator[int]:
        for piece in range(1000):
            made.append(piece)
            if piece == 2 * waiting:
                assert failed.wait(BOUND_S)
            yield piece

    def take(piece: int) -> None:
        failed.set()
        raise Broken(piece)

    with pytest.raises(Broken, match="^0$"):
        hand_over(pieces(), take, waiting)
    assert len(made) <= 2 * waiting + 1


def test_a_failed_making_ends_the_taking() -> None:
    taken: list[int] = []
    failing = threading.Event()

    def pieces() -> Iterator[int]:
        yield from range(3)
        failing.set()
        raise Broken

    def take(piece: int) -> None:
        assert failing.wait(BOUND_S)
        taken.append(piece)

    before = threading.active_count()
    with pytest.raises(Broken):
        hand_over(pieces(), take, waiting=2)
    assert taken in ([], [0])
    assert threading.active_count() == before
