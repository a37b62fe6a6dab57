"""Passes of a model over groups of queries: groups that come together share one, and nobody is overtaken.

A pass takes the groups in the order in which they came, as long as they fit; the first that does not begins the next
pass. So a long sequence waits for what came before it and for nothing else. (`serve.batch` puts what does not fit
behind all others, where it may wait for ever.)
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deployments.errors import PermanentError
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from deployments.proteins.queries import Answer, Query
from deployments.replica.device_errors import DeviceFailure, device_failure, is_broken


@dataclass(frozen=True, slots=True)
class _Group:
    queries: tuple[Query, ...]
    answers: asyncio.Future[tuple[tuple[Answer, ...], float]]

    @property
    def tokens(self) -> int:
        return sum(len(query.tokens) for query in self.queries)


class PassLoop:
    """Of one device, whose model computes in a thread of its own.

    Args:
        run: the model, on all queries of a pass; called by one thread at a time.
        max_tokens: of a pass; a group that has more is a pass of its own.
        free_memory: called when the device's memory did not hold a pass, before its halves are tried.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Query]], list[Answer]],
        max_tokens: int,
        free_memory: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._max_tokens = max_tokens
        self._free_memory = free_memory
        self._waiting: deque[_Group] = deque()
        self._thread = ThreadPoolExecutor(1, "model")
        self._loop: asyncio.Task[None] | None = None
        self._pass_began: float | None = None  # of a monotonic clock

    @property
    def pass_s(self) -> float:
        """How long the pass under way has taken so far, seconds; 0 between passes."""
        return 0.0 if self._pass_began is None else time.monotonic() - self._pass_began

    async def answer(self, queries: tuple[Query, ...]) -> tuple[tuple[Answer, ...], float]:
        """The answers in the order of the queries, and their part of the device's time, in seconds.

        Raises:
            PermanentError: `too_large_for_device`: its memory does not hold one of the queries alone.
            Exception: what the model raised for these queries; of a pass that several groups shared, each is computed
                alone, so that it bears its own error only.
        """
        group = _Group(queries, asyncio.get_running_loop().create_future())
        self._waiting.append(group)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._compute_all())
        return await group.answers

    async def _compute_all(self) -> None:
        while groups := self._next_pass():
            try:
                await self._compute(groups)
            except Exception as error:
                if len(groups) == 1 or is_broken(error):
                    _fail(groups, error)
                    continue
                for group in groups:
                    try:
                        await self._compute([group])
                    except Exception as own_error:
                        _fail([group], own_error)

    def _next_pass(self) -> list[_Group]:
        groups: list[_Group] = []
        room = self._max_tokens
        while self._waiting:
            group = self._waiting[0]
            if group.answers.done():  # its client went away
                self._waiting.popleft()
                continue
            if groups and group.tokens > room:
                break
            groups.append(self._waiting.popleft())
            room -= group.tokens
        return groups

    async def _compute(self, groups: Sequence[_Group]) -> None:
        queries = [query for group in groups for query in group.queries]
        self._pass_began = time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._within_memory, queries)
        finally:
            seconds, self._pass_began = self.pass_s, None
        tokens = sum(group.tokens for group in groups)
        RECORDER.observe(names.PROTEIN_PASS_SECONDS, seconds)
        RECORDER.count(names.PROTEIN_TOKENS, by=tokens)
        for group in groups:
            own, answers = answers[: len(group.queries)], answers[len(group.queries) :]
            if not group.answers.done():
                group.answers.set_result((tuple(own), seconds * group.tokens / tokens))

    def _within_memory(self, queries: Sequence[Query]) -> list[Answer]:
        """The pass, or its halves one after the other if the device's memory does not hold it."""
        try:
            return self._run(queries)
        except Exception as error:
            if device_failure(error) is not DeviceFailure.OUT_OF_MEMORY:
                raise
            if len(queries) == 1:
                raise PermanentError(
                    "too_large_for_device",
                    f"the device's memory does not hold a sequence of {len(queries[0])} residues with what is asked of "
                    "it; ask for contacts and embeddings apart, or send a shorter one",
                ) from error
        self._free_memory()  # here, where the error holds none of it any more
        middle = len(queries) // 2
        return [*self._within_memory(queries[:middle]), *self._within_memory(queries[middle:])]


def _fail(groups: Sequence[_Group], error: Exception) -> None:
    for group in groups:
        if not group.answers.done():
            group.answers.set_exception(error)
