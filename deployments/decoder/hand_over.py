"""Pieces that one thread makes and another takes, at the same time."""

import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Event
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Comes behind the last piece."""


def hand_over(pieces: Iterable[T], take: Callable[[T], object], waiting: int = 2) -> None:
    """Take each piece, in order, in a thread of its own, while this thread makes the next ones.

    Args:
        pieces: each is made when it is asked for.
        take: called in the other thread, in the context of this one.
        waiting: so many pieces, at least one, may be made and not yet be taken; then their making waits.

    Raises:
        What the making or the taking raised. No piece is made and none is taken after it; the other thread has ended.
    """
    queue: Queue[T | _End] = Queue(waiting)
    broken = Event()

    def take_all() -> None:
        failure: BaseException | None = None
        while not isinstance(piece := queue.get(), _End):
            if broken.is_set():
                continue  # only makes room: who makes the pieces must not wait for ever
            try:
                take(piece)
            except BaseException as error:
                broken.set()
                failure = error
        if failure is not None:
            raise failure

    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(contextvars.copy_context().run, take_all)
        try:
            for piece in pieces:
                if broken.is_set():
                    break
                queue.put(piece)
        except BaseException:
            broken.set()
            raise
        finally:
            queue.put(_End())
        taking.result()
