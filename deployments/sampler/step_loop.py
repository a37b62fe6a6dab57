"""The one thread that denoises: samples enter it, are stepped in batches, and leave it between two steps.

    while there are samples: receive new ones, remove those to be stopped or parked, step the next batch

Everything else (storage, reports, checkpoints) runs beside it and only reads `LoopEntry.sample`, which never changes
in place: a step makes new samples.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import torch

from deployments.clip import latent_tokens
from deployments.errors import StoppedError
from deployments.mochi.denoise import Sample
from deployments.replica.running_task import RunningTask
from deployments.sampler.step_batcher import Load, StepBatcher

Step = Callable[[Sequence[Sample]], list[Sample]]
"""One denoising step of samples that share a shape; returns when the device has done it."""

AfterStep = Callable[[Sample], None]

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class LoopEntry:
    """A sample in the loop, or on its way there, until `result` is set."""

    running: RunningTask
    prepare: Callable[[], Sample]  # makes it, on the loop's thread
    after_step: AfterStep  # called there with it as it was prepared, and after each step; may raise StoppedError
    exact: bool  # it shares its pass with no other sample
    result: asyncio.Future[Sample]  # as it left the loop, done or not
    sample: Sample | None = None  # after its last step; None until it is prepared
    previous: Sample | None = None  # one step before `sample`

    def finish(self, sample: Sample) -> None:
        """Set the result. From the loop's thread."""
        self._call_unless_done(self.result.set_result, sample)

    def fail(self, error: BaseException) -> None:
        """Set what awaiting the result raises. From the loop's thread."""
        if isinstance(error, StoppedError):
            # Nobody wants the sample of a stopped task: its memory is freed now, and not when Python next looks for
            # cycles, of which a traceback makes one.
            self.sample = None
            self.previous = None
            error.__traceback__ = None
        self._call_unless_done(self.result.set_exception, error)

    def _call_unless_done(self, set_result: Callable[[T], None], value: T) -> None:
        def call() -> None:
            if not self.result.done():
                set_result(value)

        self.result.get_loop().call_soon_threadsafe(call)


class StepLoop:
    """Runs on a thread of its own.

    Args:
        step: see `Step`.
        max_tokens: tokens of all rows of one forward pass, see `step_batcher`.
        warm_up: runs first on the thread, so that no sample pays for what happens once; what it raises is raised here.
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
        self._entries: list[LoopEntry] = []
        self._add_lock = threading.Lock()
        self._closed = False
        warmed_up: Future[object] = Future()
        threading.Thread(target=self._run, args=(warm_up, warmed_up), name="denoise", daemon=True).start()
        warmed_up.result()

    @property
    def samples(self) -> list[Sample]:
        """The samples in the loop; only for `LoopEntry.prepare`, on the loop's thread."""
        return [entry.sample for entry in self._entries if entry.sample is not None]

    def add(self, running: RunningTask, prepare: Callable[[], Sample], after_step: AfterStep, exact: bool) -> LoopEntry:
        """Add a sample, see `LoopEntry`; it enters between two steps. Its `result` may not be cancelled.

        Raises:
            StoppedError: the loop was closed.
        """
        entry = LoopEntry(running, prepare, after_step, exact, asyncio.get_running_loop().create_future())
        with self._add_lock:
            if self._closed:
                raise StoppedError("the step loop was closed")
            self._inbox.put(entry)
        return entry

    def close(self) -> None:
        """End the thread after the step it is in; who is inside then fails with StoppedError. From any thread."""
        with self._add_lock:
            self._closed = True
            self._inbox.put(None)

    def _run(self, warm_up: Callable[[], object], warmed_up: "Future[object]") -> None:
        with torch.no_grad():
            try:
                warmed_up.set_result(warm_up())
            except Exception as error:
                warmed_up.set_exception(error)
                return
            while self._receive():
                self._remove_stopped_and_parked()
                self._step_batch(self._batcher.next_pass())
            for entry in self._entries:
                entry.fail(StoppedError("the step loop was closed"))

    def _receive(self) -> bool:
        """Start the samples that came, waiting for one if there is none inside; False if the loop is to end."""
        wait = not self._entries
        while wait or not self._inbox.empty():
            wait = False
            entry = self._inbox.get()
            if entry is None:
                return False
            self._start(entry)
        return True

    def _start(self, entry: LoopEntry) -> None:
        try:
            entry.running.raise_if_stopped()
            sample = entry.prepare()
            entry.after_step(sample)
        except Exception as error:
            entry.fail(error)
            return
        entry.sample = sample
        if sample.done:
            entry.finish(sample)
            return
        self._entries.append(entry)
        self._batcher.add(entry, _load(sample, entry.exact))

    def _remove_stopped_and_parked(self) -> None:
        """At every boundary between two steps, whether the sample ran in the last batch or not."""
        for entry in list(self._entries):
            try:
                entry.running.raise_if_stopped()
            except Exception as error:
                self._remove(entry)
                entry.fail(error)
                continue
            if entry.running.park_reason is not None and entry.sample is not None:
                self._remove(entry)
                entry.finish(entry.sample)

    def _step_batch(self, batch: list[LoopEntry]) -> None:
        if not batch:
            return
        try:
            samples = self._run_pass(batch)
        except Exception as error:
            for entry in batch:
                self._remove(entry)
                entry.fail(error)
            return
        for entry, sample in zip(batch, samples, strict=True):
            self._finish_step(entry, sample)

    def _run_pass(self, batch: list[LoopEntry]) -> list[Sample]:
        """The stepped samples. The time is charged to them, also when the pass fails: it held the device."""
        samples = [entry.sample for entry in batch if entry.sample is not None]
        begun = self._now_ns()
        try:
            return self._step(samples)
        finally:
            took = self._now_ns() - begun
            for entry, share in zip(batch, shares(took, samples), strict=True):
                entry.running.add_device_ns(share, passes=share / took if took else 1 / len(batch))

    def _finish_step(self, entry: LoopEntry, sample: Sample) -> None:
        # In this order: who reads `previous` and then `sample`, from another thread, gets two different steps.
        previous = entry.sample
        entry.sample = sample
        entry.previous = previous
        try:
            entry.after_step(sample)
        except Exception as error:
            self._remove(entry)
            entry.fail(error)
            return
        if sample.done:
            self._remove(entry)
            entry.finish(sample)

    def _remove(self, entry: LoopEntry) -> None:
        self._entries.remove(entry)
        self._batcher.remove(entry)


def shares(nanoseconds: int, samples: Sequence[Sample]) -> list[int]:
    """The part of a pass's time that each sample is charged, by its tokens in the pass; the sum is `nanoseconds`."""
    ends = list(accumulate(_load(sample, exact=False).pass_tokens for sample in samples))
    charged = [nanoseconds * end // ends[-1] for end in ends]
    return [end - begin for begin, end in pairwise([0, *charged])]


def _load(sample: Sample, exact: bool) -> Load:
    channels, frames, height, width = sample.latents.shape
    shape = (channels, frames, height, width)
    return Load(shape, latent_tokens(shape), sample.cfg_rows, exact)
