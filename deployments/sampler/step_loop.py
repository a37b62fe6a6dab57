"""The one thread that denoises: it takes samples in, steps them in batches, and lets them go between two steps.

    while there are samples: take in who came, let go who leaves, step the next batch

Everything else (storage, reports, checkpoints) runs beside it and only reads `LoopEntry.row`, which never changes in
place: a step makes new rows.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch

from deployments.clip import latent_tokens
from deployments.errors import StoppedError
from deployments.mochi.denoise import Sample
from deployments.replica.running_task import RunningTask
from deployments.sampler.step_batcher import Load, StepBatcher

Step = Callable[[Sequence[Sample]], list[Sample]]
AfterStep = Callable[[Sample], None]


@dataclass(slots=True, eq=False)
class LoopEntry:
    """A sample in the loop.

    prepare: makes its first row, on the loop's thread. after_step: told each new row there; raises StoppedError.
    row: the newest, None before `prepare`; before: the one before it.
    left: resolved with the row it left with, done or not.
    """

    running: RunningTask
    prepare: Callable[[], Sample]
    after_step: AfterStep
    exact: bool
    left: asyncio.Future[Sample]
    row: Sample | None = None
    before: Sample | None = None
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def resolve(self, row: Sample) -> None:
        self._tell(lambda: self.left.set_result(row))

    def fail(self, error: BaseException) -> None:
        """Nobody wants the row of a stopped sample: its memory goes back now, not when cycles are next collected."""
        if isinstance(error, StoppedError):
            self.row, error.__traceback__ = None, None
        self._tell(lambda: self.left.set_exception(error))

    def _tell(self, tell: Callable[[], None]) -> None:
        def unless_done() -> None:
            if not self.left.done():
                tell()

        self.loop.call_soon_threadsafe(unless_done)


class StepLoop:
    """Runs on a thread of its own from the first sample on.

    Args:
        step: one denoising step of rows that share a shape.
        max_tokens: of all rows of one forward pass, see `step_batcher`.
        warm_up: run first on the thread, so that no sample pays for what happens once; what it raises is raised here.
        now_ns: a monotonic clock in nanoseconds; each pass is timed with it, see `shares`.
    """

    def __init__(
        self,
        step: Step,
        max_tokens: int,
        warm_up: Callable[[], object] = lambda: None,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._step = step
        self._now_ns = now_ns
        self._batcher: StepBatcher[LoopEntry] = StepBatcher(max_tokens)
        self._inbox: queue.SimpleQueue[LoopEntry | None] = queue.SimpleQueue()
        self._residents: list[LoopEntry] = []
        self._entering = threading.Lock()
        self._closed = False
        warm: Future[object] = Future()
        threading.Thread(target=self._work, args=(warm_up, warm), name="denoise", daemon=True).start()
        warm.result()

    def rows(self) -> list[Sample]:
        """The newest row of each sample inside; only for `prepare`, on the loop's thread."""
        return [resident.row for resident in self._residents if resident.row is not None]

    def enter(
        self, running: RunningTask, prepare: Callable[[], Sample], after_step: AfterStep, exact: bool
    ) -> LoopEntry:
        """Take a sample in at the next boundary between steps. Await its `left`; it may not be cancelled.

        Raises:
            StoppedError: the loop was closed.
        """
        future: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        resident = LoopEntry(running, prepare, after_step, exact, future)
        with self._entering:
            if self._closed:
                raise StoppedError("the step loop was closed")
            self._inbox.put(resident)
        return resident

    def close(self) -> None:
        """End the thread after the step it is in; who is inside then fails with StoppedError. From any thread."""
        with self._entering:
            self._closed = True
            self._inbox.put(None)

    def _work(self, warm_up: Callable[[], object], warm: "Future[object]") -> None:
        with torch.no_grad():
            try:
                warm.set_result(warm_up())
            except Exception as error:
                warm.set_exception(error)
                return
            while self._take_in():
                self._let_go()
                self._advance(self._batcher.next_pass())
            for resident in self._residents:
                resident.fail(StoppedError("the step loop was closed"))

    def _take_in(self) -> bool:
        """Admit who came, waiting for somebody if nobody is inside; False if the loop is to end."""
        wait = not self._residents
        while wait or not self._inbox.empty():
            wait = False
            resident = self._inbox.get()
            if resident is None:
                return False
            self._admit(resident)
        return True

    def _admit(self, resident: LoopEntry) -> None:
        try:
            resident.running.raise_if_stopped()
            row = resident.prepare()
            resident.after_step(row)
        except Exception as error:
            resident.fail(error)
            return
        resident.row = row
        if row.done:
            resident.resolve(row)
            return
        self._residents.append(resident)
        self._batcher.join(resident, _load(row, resident.exact))

    def _let_go(self) -> None:
        """Who was told to stop or to yield leaves here, whether it ran in the last batch or not."""
        for resident in list(self._residents):
            try:
                resident.running.raise_if_stopped()
            except Exception as error:
                self._remove(resident)
                resident.fail(error)
                continue
            if resident.running.park_reason is not None and resident.row is not None:
                self._remove(resident)
                resident.resolve(resident.row)

    def _advance(self, batch: list[LoopEntry]) -> None:
        if not batch:
            return
        try:
            rows = self._run_pass(batch)
        except Exception as error:
            for resident in batch:
                self._remove(resident)
                resident.fail(error)
            return
        for resident, row in zip(batch, rows, strict=True):
            self._advanced(resident, row)

    def _run_pass(self, batch: list[LoopEntry]) -> list[Sample]:
        """The stepped rows. The time is charged to the samples, also when the pass fails: it held the device."""
        rows = [resident.row for resident in batch if resident.row is not None]
        begun = self._now_ns()
        try:
            return self._step(rows)
        finally:
            for resident, share in zip(batch, shares(self._now_ns() - begun, rows), strict=True):
                resident.running.add_device_ns(share)

    def _advanced(self, resident: LoopEntry, row: Sample) -> None:
        resident.before, resident.row = resident.row, row
        try:
            resident.after_step(row)
        except Exception as error:
            self._remove(resident)
            resident.fail(error)
            return
        if row.done:
            self._remove(resident)
            resident.resolve(row)

    def _remove(self, resident: LoopEntry) -> None:
        self._residents.remove(resident)
        self._batcher.leave(resident)


def shares(nanoseconds: int, rows: Sequence[Sample]) -> list[int]:
    """What each sample of a pass pays of its time, by tokens x rows of the pass; the sum is `nanoseconds` exactly."""
    loads = [_load(row, exact=False) for row in rows]
    ends = list(accumulate(load.tokens * load.rows for load in loads))
    paid = [nanoseconds * end // ends[-1] for end in ends]
    return [end - begin for begin, end in pairwise([0, *paid])]


def _load(row: Sample, exact: bool) -> Load:
    channels, frames, height, width = row.latents.shape
    shape = (channels, frames, height, width)
    return Load(shape, latent_tokens(shape), row.rows, exact)
