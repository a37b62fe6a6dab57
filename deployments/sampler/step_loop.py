"""The one thread that denoises: samples enter it, are stepped in batches, and leave it between two steps.

    while there are samples: receive new ones, remove those to be stopped or parked, step the next batch

No other thread touches the device. Between two steps it is idle, and whatever anybody needs of a sample on the host is
copied then, here: by `LoopEntry.after_step` what is recorded of it, by the loop the latents with which it leaves. A
copy from another thread would go to the same stream and wait for the step that is under way.

A sample whose next step reuses what the last full one computed is parked or checkpointed as soon as none does: it is
stepped on by itself until then, by steps that cost next to nothing (`deployments.step_rules`).

A device that breaks is lost to all samples, in the pass or not: they leave with what is on the host, and the loop ends.
"""

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self, TypeVar

import torch
from torch import Tensor

from deployments.clip import LatentShape, latent_tokens
from deployments.errors import StoppedError, TransientError, WorkerError
from deployments.messages import VideoSpec
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from deployments.mochi.denoise import Sample
from deployments.replica.device_errors import is_broken
from deployments.replica.running_task import RunningTask
from deployments.sampler.step_batcher import Load, StepBatcher

MAX_WAIT_NS = 300 * 10**9  # see `StepBatcher`; a replica counts as stuck if a sample has no step in `Timing.stall_s`

Step = Callable[[Sequence[Sample]], Sequence[Sample | WorkerError]]
"""One denoising step of samples that share a shape and a LoRA; returns when the device has done it. In the place of a
sample that cannot go on, and whose neighbours can, is the error with which it fails."""

AfterStep = Callable[[Sample, Sample | None], None]
"""Takes a sample, and what it was one step before: None when it was prepared and not stepped."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A sample between two steps, on the host."""

    step: int  # denoising steps done
    num_steps: int
    latents: Tensor  # [12, T, H/8, W/8] fp32, on the CPU

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Between two steps, on the loop's thread: it then waits for nothing but the copy. On the CPU none is made."""
        return cls(sample.step, sample.num_steps, sample.latents.cpu())

    @property
    def done(self) -> bool:
        return self.step >= self.num_steps


@dataclass(slots=True, eq=False)
class LoopEntry:
    """A sample in the loop, or on its way there, until `result` is set."""

    running: RunningTask
    prepare: Callable[[], Sample]  # makes it, on the loop's thread
    after_step: AfterStep  # called there with it as it was prepared, and after each step; may raise StoppedError
    exact: bool  # it shares its pass with no other sample
    result: asyncio.Future[Snapshot]  # as it left the loop, done or not
    sample: Sample | None = None  # after its last step, on the device; None until it is prepared and when it has left
    resumable: Sample | None = None  # `sample`, as it was when it could last have gone on elsewhere
    kept: Snapshot | None = None  # of `resumable`, before a pass that failed and left the device whole

    def finish(self, snapshot: Snapshot) -> None:
        """Set the result. From the loop's thread."""
        self.sample = self.resumable = None
        self._call_unless_done(self.result.set_result, snapshot)

    def fail(self, error: BaseException) -> None:
        """Set what awaiting the result raises. From the loop's thread."""
        # The device's memory is freed now, and not when Python next looks for cycles, of which a traceback makes one.
        self.sample = self.resumable = None
        if isinstance(error, StoppedError):
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
        now_ns: a monotonic clock in nanoseconds; each pass is timed with it, for `shares` and for whose turn it is.
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
        self._batcher: StepBatcher[LoopEntry] = StepBatcher(max_tokens, max_wait=MAX_WAIT_NS)
        self._inbox: queue.SimpleQueue[LoopEntry | None] = queue.SimpleQueue()
        self._entries: list[LoopEntry] = []
        self._add_lock = threading.Lock()
        self._end: Callable[[], Exception] | None = None  # makes what those get that are left, or come too late
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
            TransientError: `replica_unhealthy`: its device is broken.
        """
        # What is done for the sample alone has its caller's context on the thread, too: the log's ids.
        context = contextvars.copy_context()
        entry = LoopEntry(
            running,
            lambda: context.run(prepare),
            lambda sample, before: context.run(after_step, sample, before),
            exact,
            asyncio.get_running_loop().create_future(),
        )
        with self._add_lock:
            if self._end is not None:
                raise self._end()
            self._inbox.put(entry)
        return entry

    def close(self) -> None:
        """End the thread after the step it is in; who is inside then fails with StoppedError. From any thread."""
        self._refuse(_closed)

    def _run(self, warm_up: Callable[[], object], warmed_up: "Future[object]") -> None:
        with torch.no_grad():
            try:
                warmed_up.set_result(warm_up())
            except Exception as error:
                warmed_up.set_exception(error)
                return
            self._fail_all(self._step_until_end())

    def _step_until_end(self) -> Callable[[], Exception]:
        """Returns what makes the error of those that are left."""
        try:
            while self._receive():
                self._remove_stopped_and_parked()
                self._step_batch(self._batcher.next_pass())
        except _DeviceLostError:
            self._refuse(_device_lost)
            return _device_lost
        return _closed

    def _refuse(self, end: Callable[[], Exception]) -> None:
        """No sample comes in any more; the first reason counts."""
        with self._add_lock:
            self._end = self._end or end
            self._inbox.put(None)

    def _fail_all(self, end: Callable[[], Exception]) -> None:
        for entry in self._entries:
            entry.fail(end())
        while not self._inbox.empty():
            waiting = self._inbox.get()
            if waiting is not None:
                waiting.fail(end())

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
            entry.after_step(sample, None)
        except Exception as error:
            self._fail([entry], error)
            return
        entry.sample = entry.resumable = sample
        if sample.done:
            self._leave(entry, sample)
            return
        self._entries.append(entry)
        self._batcher.add(entry, _load(sample, entry.exact))

    def _remove_stopped_and_parked(self) -> None:
        """At every boundary between two steps, whether the sample ran in the last batch or not."""
        for entry in list(self._entries):
            while not self._has_left(entry) and entry.running.park_reason is not None:
                self._step_batch([entry])

    def _has_left(self, entry: LoopEntry) -> bool:
        """Whether the sample is gone, after it is removed if it is stopped, or is to be parked and can be."""
        if entry not in self._entries:
            return True
        try:
            entry.running.raise_if_stopped()
        except Exception as error:
            self._fail([entry], error)
            return True
        if entry.running.park_reason is None or entry.sample is None or not entry.sample.resumable:
            return False
        self._leave(entry, entry.sample)
        return True

    def _step_batch(self, batch: list[LoopEntry]) -> None:
        if not batch:
            return
        try:
            outcomes = self._run_pass(batch)
        except Exception as error:
            self._fail_pass(batch, error)
            return
        for entry, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail([entry], outcome)
            else:
                self._finish_step(entry, outcome)

    def _run_pass(self, batch: list[LoopEntry]) -> Sequence[Sample | WorkerError]:
        """See `Step`. The time is charged to them, also when the pass fails: it held the device."""
        samples = [entry.sample for entry in batch if entry.sample is not None]
        begun = self._now_ns()
        try:
            return self._step(samples)
        finally:
            took = self._now_ns() - begun
            self._batcher.count_pass(batch, took)
            count_step(batch[0].running.task.video, samples, took)
            for entry, share in zip(batch, shares(took, samples), strict=True):
                entry.running.add_device_ns(share, passes=share / took if took else 1 / len(batch))

    def _fail_pass(self, batch: list[LoopEntry], error: Exception) -> None:
        """Their latents are as they were before the pass; where the device works they are kept."""
        if not is_broken(error):
            try:
                for entry in batch:
                    entry.kept = None if entry.resumable is None else Snapshot.of(entry.resumable)
            except Exception as worse:
                error = worse
        self._fail(batch, error)

    def _finish_step(self, entry: LoopEntry, sample: Sample) -> None:
        previous = entry.sample
        entry.sample = sample
        if sample.resumable:
            entry.resumable = sample
        try:
            entry.after_step(sample, previous)
        except Exception as error:
            self._fail([entry], error)
            return
        if sample.done:
            self._leave(entry, sample)
            return
        self._batcher.update(entry, _load(sample, entry.exact))

    def _leave(self, entry: LoopEntry, sample: Sample) -> None:
        try:
            snapshot = Snapshot.of(sample)
        except Exception as error:
            self._fail([entry], error)
            return
        self._remove(entry)
        entry.finish(snapshot)

    def _fail(self, entries: Sequence[LoopEntry], error: Exception) -> None:
        """Raises _DeviceLostError if the error is one that no other sample outlives."""
        for entry in entries:
            self._remove(entry)
            entry.fail(error)
        if is_broken(error):
            raise _DeviceLostError

    def _remove(self, entry: LoopEntry) -> None:
        """One that was not started is in neither."""
        if entry in self._entries:
            self._entries.remove(entry)
            self._batcher.remove(entry)


class _DeviceLostError(Exception):
    """The device is lost to all samples of the loop."""


def _closed() -> Exception:
    return StoppedError("the step loop was closed")


def _device_lost() -> Exception:
    return TransientError("replica_unhealthy", "the device of the replica broke while it worked on another job")


def shares(nanoseconds: int, samples: Sequence[Sample]) -> list[int]:
    """The part of a pass's time that each sample is charged; the sum is `nanoseconds`.

    It goes by the tokens of its rows, for each block that they go through.
    """
    ends = list(accumulate(latent_tokens(_shape(sample)) * sample.block_rows for sample in samples))
    charged = [nanoseconds * end // ends[-1] for end in ends]
    return [end - begin for begin, end in pairwise([0, *charged])]


def count_step(spec: VideoSpec, samples: Sequence[Sample], nanoseconds: int) -> None:
    """For the metrics. spec: of one of them; they share its size, and nearly always its quality."""
    rows = sum(sample.cfg_rows for sample in samples)
    shape = f"{spec.width}x{spec.height}x{spec.num_frames}"
    RECORDER.observe(names.STEP_SECONDS, nanoseconds / 1e9, shape, spec.quality)
    RECORDER.observe(names.STEP_ROWS, rows)
    RECORDER.observe(names.STEP_TOKENS, rows * latent_tokens(_shape(samples[0])))


def _load(sample: Sample, exact: bool) -> Load:
    shape = _shape(sample)
    return Load(shape, latent_tokens(shape), sample.cfg_rows, exact, sample.lora)


def _shape(sample: Sample) -> LatentShape:
    channels, frames, height, width = sample.latents.shape
    return channels, frames, height, width
