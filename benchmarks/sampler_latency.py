"""How fast the sampler lets a job go and takes the next one in, and what its checkpoints cost.

    python benchmarks/sampler_latency.py
    python benchmarks/sampler_latency.py --pairs 15 --out benchmarks/results/sampler_latency.json

The replica as it is served, with the included model on the CPU and a SeaweedFS of its own beside it, without Ray: the
registry is its mailbox in this process. Prints a table and, last, one line of JSON.
"""

import argparse
import asyncio
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from deployments.errors import WorkerError
from deployments.keys import prompt_embeds_key
from deployments.messages import Checkpointed, Directive, Event, Finished, Parked, Stage, StageTask, Started, VideoSpec
from deployments.metrics.names import StartPhase
from deployments.mochi.denoise import Sample
from deployments.prompts.prompt_encoder import TextEncoder
from deployments.replica.connections import Connections, bucket_opener
from deployments.sampler.mochi_sampler import MochiSampler, SamplerParts, load_parts
from deployments.settings import StorageSettings, WorkerSettings
from deployments.storage.models.lora_files import LoraFiles
from deployments.storage.object_store import ObjectStore
from deployments.storage.work_files import CONTENT_TYPE, WorkLabel, pack
from serve_app.local.store.seaweed import LocalStorage
from tests.support.servers.ports import free_block
from tests.support.workers.fakes import SHAPES, ReportLog, spec, undecorated, worker_settings

REPLICA = "replica-1"
SLOW_STEP_S = 0.3
OVER_A_STEP_S = 0.05
GAP_BAR_S = 0.05
CHECKPOINT_S = 1.0
CHECKPOINT_BAR = 0.03
NEVER_S = 1e9
POLL_S = 0.005

CLIP = spec(num_frames=25, num_inference_steps=20)
ENDLESS_CLIP = spec(num_frames=25, num_inference_steps=1000)
LONG_CLIP = spec(width=128, num_frames=61, num_inference_steps=200)


def main() -> None:
    arguments = _arguments()
    warnings.filterwarnings("ignore", message="In CPU autocast")  # diffusers asks for an fp32 autocast, a no-op
    warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")
    transformers_logging.disable_progress_bar()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    sections = asyncio.run(measure(arguments.repeats, arguments.jobs, arguments.pairs))
    Console().print(as_table(sections))
    machine = describe_machine(torch.device("cpu"))
    publish({"benchmark": "sampler_latency", "machine": machine, **sections}, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=_positive, default=10, help="stops, and as many yields")
    parser.add_argument("--jobs", type=_positive, default=20, help="gaps between two jobs")
    parser.add_argument("--pairs", type=_positive, default=7, help="jobs with checkpoints, and as many without")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


async def measure(repeats: int, jobs: int, pairs: int) -> dict[str, Any]:
    """All three sections, by their names in the JSON."""
    async with object_store() as store:
        return {
            "slot_free": await slot_free(store, repeats),
            "between_jobs": await between_jobs(store, jobs),
            "checkpoints": await checkpoint_cost(store, pairs),
        }


class StepTimes:
    """Notes when each pass of a sampler began and ended.

    Every job here runs alone and in one batch, so a pass is one denoise step of it. The step function returns when
    the device has done the step, min_step_s included.
    """

    def __init__(self) -> None:
        self.begun: list[float] = []  # seconds of `time.perf_counter`, in order
        self.ended: list[float] = []  # the same

    def load_parts(
        self,
        settings: WorkerSettings,
        model_folder: Path,
        device: torch.device,
        lora_files: Mapping[str, LoraFiles],
        end_phase: Callable[[StartPhase], None],
    ) -> SamplerParts:
        """The sampler's parts, with a step function that notes its times."""
        parts = load_parts(settings, model_folder, device, lora_files, end_phase)

        def step(samples: Sequence[Sample]) -> Sequence[Sample | WorkerError]:
            self.begun.append(time.perf_counter())
            stepped = parts.step(samples)
            self.ended.append(time.perf_counter())
            return stepped

        return replace(parts, step=step)


@dataclass
class Replica:
    """A sampler with one slot, the registry's side of it, and its store with the embeddings of one prompt."""

    sampler: Any
    log: ReportLog
    store: ObjectStore
    embeds: dict[str, Tensor]
    revision: str  # of the model that made them
    times: StepTimes

    async def job(self, name: str, video: VideoSpec) -> StageTask:
        """A task that can be sampled: its embeddings are in the store."""
        label = WorkLabel(prompt_embeds_key(name), self.revision, worker_settings(Stage.SAMPLING).model.dtype, video)
        await self.store.put(label.key, pack(label, self.embeds), CONTENT_TYPE)
        return StageTask(name, f"lease of {name}", Stage.SAMPLING, 1, video)

    def post(self, task: StageTask, directive: Directive) -> None:
        self.log.mailbox.post(REPLICA, task.lease, directive)

    def checkpoint_each(self, seconds: float) -> None:
        """From the next job on."""
        self.sampler.recorder.checkpoint_s = seconds

    async def begun(self, steps: int) -> None:
        """Return once so many steps in all have begun."""
        while len(self.times.begun) < steps:
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def object_store() -> AsyncIterator[ObjectStore]:
    """A SeaweedFS in a temporary folder on free ports."""
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(StorageSettings(local_port=free_block()), Path(folder))
        try:
            store = ObjectStore(await storage.ready())
            yield store
            store.close()
        finally:
            await storage.stop()


@contextmanager
def replica(store: ObjectStore, **sampling: float) -> Iterator[Replica]:
    """A sampler with these changes to the sampling settings; closed in the end."""
    settings = worker_settings(Stage.SAMPLING)
    changed = settings.sampling.model_copy(update=sampling)
    settings = settings.model_copy(update={"sampling": changed, "slots": 1})
    log = ReportLog()
    times = StepTimes()
    connections = Connections(REPLICA, log, store, bucket_opener(settings.storage))
    sampler = undecorated(MochiSampler)(settings, connections, load_parts=times.load_parts)
    encoder = TextEncoder(SHAPES, settings.model.dtype, torch.device("cpu"), settings.model.max_sequence_length)
    try:
        embeds = encoder.encode(CLIP.prompt, CLIP.negative_prompt)
        yield Replica(sampler, log, store, embeds, sampler.work_revision(Stage.ENCODING), times)
    finally:
        sampler.__del__()


async def slot_free(store: ObjectStore, repeats: int) -> dict[str, Any]:
    """From a directive in the mailbox to the return of the replica's call: then the slot takes the next job."""
    taken: dict[Directive, list[float]] = {Directive.STOP: [], Directive.PARK: []}
    with replica(store, min_step_s=SLOW_STEP_S) as slow:
        for number, moment in enumerate(moments(repeats, seed=0)):
            for directive, seconds in taken.items():
                task = await slow.job(f"{directive}-{number}", ENDLESS_CLIP)
                seconds.append(await _let_go(slow, task, directive, moment * SLOW_STEP_S))
    bar = SLOW_STEP_S + OVER_A_STEP_S
    section = {"step_ms": SLOW_STEP_S * 1e3, "repeats": repeats}
    return section | {str(directive): against(bar, seconds, max(seconds)) for directive, seconds in taken.items()}


def moments(count: int, seed: int) -> list[float]:
    """Random moments within a step as shares of it, one in each of `count` equal parts, in random order."""
    chance = random.Random(seed)
    drawn = [(part + chance.random()) / count for part in range(count)]
    chance.shuffle(drawn)
    return drawn


async def _let_go(slow: Replica, task: StageTask, directive: Directive, after_s: float) -> float:
    """Seconds from the directive, posted after_s into the job's second step, to the end of the call."""
    done = len(slow.times.begun)
    call = asyncio.create_task(slow.sampler.run(task))
    await slow.begun(done + 2)
    await asyncio.sleep(max(0.0, slow.times.begun[done + 1] + after_s - time.perf_counter()))
    posted = time.perf_counter()
    slow.post(task, directive)
    await call
    taken = time.perf_counter() - posted
    _expect(slow.log, task, Started if directive == Directive.STOP else Parked)
    return taken


async def between_jobs(store: ObjectStore, jobs: int) -> dict[str, Any]:
    """From the end of a job's last step to the beginning of the next one's first, the next sent when a slot is free."""
    with replica(store) as usual:
        tasks = [await usual.job(f"next-{number}", CLIP) for number in range(jobs + 1)]
        for task in tasks:
            await usual.sampler.run(task)
            _expect(usual.log, task, Finished)
        seconds = gaps(usual.times.begun, usual.times.ended, CLIP.num_inference_steps)
    section = {"jobs": jobs, "steps": CLIP.num_inference_steps}
    return section | against(GAP_BAR_S, seconds, statistics.median(seconds))


def gaps(begun: Sequence[float], ended: Sequence[float], steps: int) -> list[float]:
    """Seconds between the last step of each job and the first of the next; all jobs have so many steps.

    Raises:
        SystemExit: the steps do not fill whole jobs, so that the times belong to something else.
    """
    if len(begun) != len(ended) or len(begun) % steps:
        raise SystemExit(f"{len(begun)} passes began and {len(ended)} ended; whole jobs of {steps} steps were expected")
    return [begun[first] - ended[first - 1] for first in range(steps, len(begun), steps)]


async def checkpoint_cost(store: ObjectStore, pairs: int) -> dict[str, Any]:
    """Time a step with a checkpoint each second, and with none; who is first alternates from pair to pair.

    One replica does both: two differ by more than this, by where their weights happen to lie in memory.
    """
    intervals = {"on": CHECKPOINT_S, "off": NEVER_S}
    seconds: dict[str, list[float]] = {side: [] for side in intervals}
    saved: dict[str, list[int]] = {side: [] for side in intervals}
    with replica(store) as one:
        await one.sampler.run(await one.job("warm", LONG_CLIP))
        for number in range(pairs):
            for side in sorted(intervals, reverse=number % 2 == 1):
                one.checkpoint_each(intervals[side])
                task = await one.job(f"{side}-{number}", LONG_CLIP)
                seconds[side].append(await _seconds_a_step(one, task))
                saved[side].append(sum(isinstance(event, Checkpointed) for event in one.log.events_of(task.job_id)))
    if not min(saved["on"]) or max(saved["off"]):
        raise SystemExit(f"checkpoints of the jobs with them: {saved['on']}, of those without: {saved['off']}")
    section = {"pairs": pairs, "steps": LONG_CLIP.num_inference_steps, "checkpoints": sum(saved["on"])}
    return section | cost(seconds["on"], seconds["off"])


async def _seconds_a_step(one: Replica, task: StageTask) -> float:
    """From the beginning of the job's first step to the end of its last, by its steps."""
    first = len(one.times.begun)
    await one.sampler.run(task)
    _expect(one.log, task, Finished)
    return (one.times.ended[-1] - one.times.begun[first]) / task.video.num_inference_steps


def cost(on: Sequence[float], off: Sequence[float]) -> dict[str, Any]:
    """What checkpoints add to a step: the median of the ratios, pair by pair, less one. on, off: seconds a step."""
    ratios = [one / other for one, other in zip(on, off, strict=True)]
    median = statistics.median(ratios)
    return {
        "on_ms_per_step": round(statistics.median(on) * 1e3, 3),
        "off_ms_per_step": round(statistics.median(off) * 1e3, 3),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median_ratio": round(median, 4),
        "bar_ratio": 1 + CHECKPOINT_BAR,
        "holds": median <= 1 + CHECKPOINT_BAR,
    }


def against(bar: float, seconds: Sequence[float], judged: float) -> dict[str, Any]:
    """Median and maximum of some waits, and whether `judged` of them is within the bar; all in seconds."""
    return {
        "median_ms": round(statistics.median(seconds) * 1e3, 1),
        "max_ms": round(max(seconds) * 1e3, 1),
        "bar_ms": round(bar * 1e3, 1),
        "holds": judged <= bar,
    }


def as_table(sections: dict[str, Any]) -> Table:
    slot, between, checkpoints = (sections[name] for name in ("slot_free", "between_jobs", "checkpoints"))
    table = Table("", "median", "maximum", "bar", "holds", title="the sampler's replica, one slot")
    for directive in (Directive.STOP, Directive.PARK):
        name = f"{directive}, step of {slot['step_ms']:.0f} ms"
        table.add_row(name, *_waits(slot[directive]), _bar(slot[directive], "maximum"), _yes(slot[directive]))
    table.add_row("between two jobs", *_waits(between), _bar(between, "median"), _yes(between))
    shares = [f"{ratio - 1:+.1%}" for ratio in (checkpoints["median_ratio"], max(checkpoints["ratios"]))]
    name = f"checkpoints, step of {checkpoints['off_ms_per_step']:.1f} ms"
    table.add_row(name, *shares, f"median {checkpoints['bar_ratio'] - 1:+.1%}", _yes(checkpoints))
    return table


def _waits(section: dict[str, Any]) -> tuple[str, str]:
    return f"{section['median_ms']:.1f} ms", f"{section['max_ms']:.1f} ms"


def _bar(section: dict[str, Any], judged: str) -> str:
    return f"{judged} {section['bar_ms']:.0f} ms"


def _yes(section: dict[str, Any]) -> str:
    return "yes" if section["holds"] else "no"


def _expect(log: ReportLog, task: StageTask, last: type[Event]) -> None:
    """A job that ended in another way was not what is measured."""
    end = log.events_of(task.job_id)[-1]
    if not isinstance(end, last):
        raise SystemExit(f"{task.job_id} was to end with {last.__name__}, not with {end}")


if __name__ == "__main__":
    main()
