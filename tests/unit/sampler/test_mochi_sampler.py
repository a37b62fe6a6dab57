"""The sampler's replica against the stock pipeline."""

import asyncio
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
import torch._inductor.compile_fx
from diffusers import MochiPipeline
from safetensors.torch import load

from deployments.dtypes import WeightsName
from deployments.errors import PermanentError, WorkerError
from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key
from deployments.messages import (
    Checkpointed,
    Directive,
    Event,
    Failed,
    Finished,
    InputUnusable,
    Parked,
    Progress,
    Stage,
    StageTask,
    Started,
    VideoSpec,
)
from deployments.metrics import names
from deployments.metrics.names import StartPhase
from deployments.metrics.recorder import RECORDER, Distribution
from deployments.mochi.denoise import Sample
from deployments.mochi.weights.loading import load_transformer
from deployments.prompts.prompt_encoder import PromptEncoder, TextEncoder
from deployments.replica.running_task import RunningTask, Timing
from deployments.sampler.memory_gate import MemoryGate
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint
from deployments.sampler.mochi_sampler import (
    MochiSampler,
    SamplerParts,
    load_parts,
)
from deployments.sampler.state import SampleState
from deployments.settings import LoraSettings, WorkerSettings
from deployments.storage.models.lora_files import LoraFiles
from deployments.storage.models.store import CACHE_VARIABLE
from deployments.storage.work_files import FORMAT, HEADER, WorkLabel, pack
from deployments.storage.work_revision import work_revision
from tests.support.workers.fakes import (
    SHAPES,
    Clock,
    ReportLog,
    captured,
    connections,
    model_without_map,
    running_task,
    spec,
    task,
    undecorated,
    worker_settings,
)
from tests.support.workers.loras import peft_lora, written
from tests.support.workers.memory_store import MemoryStore


async def encoded(video: VideoSpec) -> MemoryStore:
    """A store with the embeddings in it, written by a real encoder."""
    store = MemoryStore()
    encoder = undecorated(PromptEncoder)(worker_settings(Stage.ENCODING), connections=connections(ReportLog(), store))
    await encoder.run(task(Stage.ENCODING, video))
    return store


@cache
def text_encoder() -> TextEncoder:
    return TextEncoder(SHAPES, "float32", torch.device("cpu"), 64)


@cache
def embeds_revision() -> str:
    model = worker_settings(Stage.ENCODING).model
    return work_revision(
        model, model.dtype, SHAPES, Stage.ENCODING, connections(ReportLog(), MemoryStore()).open_bucket
    )


def embedded(*tasks: StageTask, down: Callable[[str], bool] = lambda key: False) -> MemoryStore:
    """A store with the embeddings of each task in it. down: keys that it fails to write."""
    store = MemoryStore(down)
    for each in tasks:
        tensors = text_encoder().encode(each.video.prompt, each.video.negative_prompt)
        label = WorkLabel(prompt_embeds_key(each.job_id), embeds_revision(), "float32", each.video)
        store.objects[label.key] = pack(label, tensors)
    return store


def job(number: int, video: VideoSpec) -> StageTask:
    return replace(task(Stage.SAMPLING, video), job_id=f"video_{number}", lease=f"lease_{number}")


Change = Callable[[SamplerParts], SamplerParts]
Replica = Callable[..., Any]


@pytest.fixture
def replica() -> Iterator[Replica]:
    """Makes a sampler, with these changes to its parts and to the sampling settings; it ends with the test."""
    made: list[Any] = []

    def make(
        log: ReportLog,
        store: MemoryStore,
        *changes: Change,
        timing: Timing = Timing(),
        source: Path = SHAPES,
        weights: WeightsName | None = None,
        loras: Mapping[str, LoraSettings] = {},
        **sampling: object,
    ) -> Any:
        def load_changed_parts(
            settings: WorkerSettings,
            model_folder: Path,
            device: torch.device,
            lora_files: Mapping[str, LoraFiles],
            end_phase: Callable[[StartPhase], None],
        ) -> SamplerParts:
            parts = load_parts(settings, model_folder, device, lora_files, end_phase)
            for change in changes:
                parts = change(parts)
            return parts

        settings = worker_settings(Stage.SAMPLING, source)
        changed = settings.sampling.model_copy(update=sampling)
        model = settings.model.model_copy(update={"weights": weights, "loras": loras})
        settings = settings.model_copy(update={"sampling": changed, "model": model, "slots": 4, "torch_threads": 1})
        made.append(undecorated(MochiSampler)(settings, connections(log, store), timing, load_changed_parts))
        return made[-1]

    yield make
    for sampler in made:
        sampler.__del__()


class Passes:
    """A change to a sampler's parts: its passes are counted, and may fail or wait."""

    def __init__(self, fails_at: int | None = None, error: Exception | None = None) -> None:
        self.count = 0
        self.samples = 0  # in all passes together
        self.prepared = 0  # samples
        self.may_go_on = threading.Event()  # cleared, it holds the next pass
        self.held = threading.Event()  # a pass is held
        self.may_go_on.set()
        self._fails_at = fails_at  # the number of the pass that fails
        self._error = error or torch.OutOfMemoryError("tried to allocate 3 GiB")

    def __call__(self, parts: SamplerParts) -> SamplerParts:
        def prepare(state: SampleState, others: Sequence[Sample]) -> Sample:
            self.prepared += 1
            return parts.prepare(state, others)

        def step(samples: Sequence[Sample]) -> Sequence[Sample | WorkerError]:
            self._begin(samples)
            return parts.step(samples)

        return replace(parts, prepare=prepare, step=step)

    def _begin(self, samples: Sequence[Sample]) -> None:
        self.count += 1
        if self.count == self._fails_at:
            raise self._error
        self.samples += len(samples)
        if not self.may_go_on.is_set():
            self.held.set()
            self.may_go_on.wait()


def at_step(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Progress) and event.done >= step


def final(store: MemoryStore, job_id: str = "video_1") -> torch.Tensor:
    return load(store.objects[latents_key(job_id)])["latents"]


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


async def undisturbed(replica: Replica, video: VideoSpec) -> torch.Tensor:
    store = embedded(job(1, video))
    await replica(ReportLog(), store).run(job(1, video))
    return final(store)


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
async def test_latents_equal_the_pipelines(replica: Replica, guidance_scale: float) -> None:
    video = spec(guidance_scale=guidance_scale, num_frames=25, negative_prompt="blue")
    log, store = ReportLog(), await encoded(video)
    await replica(log, store).run(task(Stage.SAMPLING, video))
    latents = load(store.objects[latents_key("video_1")])["latents"]

    pipe = MochiPipeline.from_pretrained(SHAPES, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        video.prompt,
        "blue",
        height=64,
        width=64,
        num_frames=25,
        num_inference_steps=video.num_inference_steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(video.seed),
        output_type="latent",
        max_sequence_length=64,
    ).frames[0]
    assert latents.dtype == torch.float32 and latents.shape == (12, 5, 8, 8)
    assert relative_error(latents, wanted) <= 1e-4


async def test_a_sampler_whose_blocks_cannot_be_compiled_says_so_and_samples(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await undisturbed(replica, spec())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    log, store = ReportLog(), embedded(job(1, spec()))

    def compile_fx(*args: object, **options: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    with monkeypatch.context() as without:
        without.setattr(torch._inductor.compile_fx, "compile_fx", compile_fx)
        sampler = replica(log, store, compile=True)
    await sampler.run(job(1, spec()))
    started = log.ends[0]
    assert isinstance(started, Started)
    assert re.search(r", not compiled \(.*compiler.*\)$", started.device, re.IGNORECASE)
    assert torch.equal(final(store), wanted)
    (kept,) = (tmp_path / "memory").iterdir()
    assert json.loads(kept.read_text())["key"]["blocks"] == "eager"


async def test_the_phases_of_its_start_are_counted(replica: Replica) -> None:
    def starts() -> Mapping[str, int]:
        values = RECORDER.snapshot("test").values
        found = {phase: values.get((names.START_SECONDS.name, ("sampling", phase))) for phase in get_args(StartPhase)}
        return {phase: sum(value.counts) for phase, value in found.items() if isinstance(value, Distribution)}

    before = starts()
    replica(ReportLog(), MemoryStore())
    after = starts()
    assert {phase: after[phase] - before.get(phase, 0) for phase in after} == dict.fromkeys(get_args(StartPhase), 1)


async def test_reports_and_stores_in_order(replica: Replica) -> None:
    log, store = ReportLog(), await encoded(spec())
    await replica(log, store).run(task(Stage.SAMPLING))
    assert store.written == [prompt_embeds_key("video_1"), latents_key("video_1")]
    started, finished = log.ends
    assert isinstance(started, Started)
    assert isinstance(finished, Finished) and set(finished.seconds) == {"load", "denoise", "store"}
    assert all(event.total == 6 for event in log.events if isinstance(event, Progress))


async def test_the_header_tells_what_the_latents_are(replica: Replica) -> None:
    log, store = ReportLog(), await encoded(spec())
    await replica(log, store).run(task(Stage.SAMPLING))
    data = store.objects[latents_key("video_1")]
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][HEADER])
    assert header["format"] == FORMAT and header["key"] == latents_key("video_1")
    assert VideoSpec.from_json(json.loads(header["spec"])) == spec() == VideoSpec.from_json(spec().to_json())


async def test_the_same_seed_gives_the_same_bytes_and_another_does_not(replica: Replica) -> None:
    tasks = [job(number, spec(seed=seed)) for number, seed in enumerate((7, 7, 8))]
    store = embedded(*tasks)
    sampler = replica(ReportLog(), store)
    for each in tasks:
        await sampler.run(each)
    outputs = [final(store, each.job_id) for each in tasks]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


async def test_a_stop_leaves_no_latents_and_the_replica_goes_on(replica: Replica) -> None:
    def at_progress(event: Event) -> bool:
        return isinstance(event, Progress)

    given = job(1, spec(num_inference_steps=200, num_frames=61))
    log, store = ReportLog(stop_at=at_progress), embedded(given)
    sampler = replica(log, store)
    await sampler.run(given)
    assert latents_key("video_1") not in store.objects
    assert [type(event) for event in log.ends] == [Started]
    assert max(event.done for event in log.events if isinstance(event, Progress)) < 200
    await sampler.check_health()


async def test_embeddings_that_are_missing_are_to_be_made_again(replica: Replica) -> None:
    log = ReportLog()
    await replica(log, MemoryStore()).run(task(Stage.SAMPLING))
    end = log.ends[-1]
    assert isinstance(end, InputUnusable) and prompt_embeds_key("video_1") in end.reason


async def test_embeddings_of_another_job_are_to_be_made_again(replica: Replica) -> None:
    log, store = ReportLog(), embedded(job(1, spec()), job(2, spec()))
    store.objects[prompt_embeds_key("video_1")] = store.objects[prompt_embeds_key("video_2")]
    await replica(log, store).run(job(1, spec()))
    end = log.ends[-1]
    assert isinstance(end, InputUnusable) and f"written as {prompt_embeds_key('video_2')}" in end.reason


STEPS = 20
LONG = spec(num_inference_steps=STEPS, guidance_scale=1.0)


@pytest.mark.parametrize("exact", [False, True])
async def test_a_parked_sample_goes_on_in_another_replica_as_if_nothing_had_been(replica: Replica, exact: bool) -> None:
    first_task = job(1, replace(LONG, exact=exact))
    store, first_log = embedded(first_task), ReportLog(park_at=at_step(3))
    first = replica(first_log, store, first_passes := Passes(), min_step_s=0.05)
    await first.run(first_task)
    started, parked = first_log.ends
    assert isinstance(started, Started) and isinstance(parked, Parked)
    assert 3 <= parked.step < STEPS and parked.reason == "the registry asked for it"
    assert store.written == [checkpoint_key("video_1", parked.step)]
    assert latents_key("video_1") not in store.objects

    second_log = ReportLog()
    second = replica(second_log, store, second_passes := Passes())
    await second.run(replace(first_task, lease="lease_2", checkpoint_step=parked.step))
    assert isinstance(second_log.ends[-1], Finished)
    assert all(event.begun_at == parked.step for event in second_log.events if isinstance(event, Progress))
    assert (first_passes.samples, second_passes.samples) == (parked.step, STEPS - parked.step)
    assert torch.equal(final(store), await undisturbed(replica, LONG))


async def test_a_sample_that_is_parked_again_and_again_ends_the_same(replica: Replica) -> None:
    given, done = job(1, LONG), 0
    store, samples = embedded(given), 0
    while latents_key("video_1") not in store.objects:
        log = ReportLog(park_at=at_step(done + 1))
        sampler = replica(log, store, passes := Passes(), min_step_s=0.05)
        await sampler.run(replace(given, lease=f"lease_{done}", checkpoint_step=done))
        samples += passes.samples
        if isinstance(parked := log.ends[-1], Parked):
            assert parked.step > done
            done = parked.step
    assert samples == STEPS
    assert torch.equal(final(store), await undisturbed(replica, LONG))


async def test_a_checkpoint_is_in_the_store_before_it_is_reported(replica: Replica) -> None:
    given = job(1, LONG)
    store, whole = embedded(given), list[bool]()

    def look(event: Event) -> bool:
        if isinstance(event, Checkpointed):
            whole.append(checkpoint_key("video_1", event.step) in store.objects)
        return False

    log = ReportLog(stop_at=look)
    await replica(log, store, checkpoint_s=0.05, min_step_s=0.04).run(given)
    steps = [event.step for event in log.ends if isinstance(event, Checkpointed)]
    assert len(steps) >= 2 and steps == sorted(set(steps)) and all(whole)
    assert store.written == [*(checkpoint_key("video_1", step) for step in steps), latents_key("video_1")]
    assert isinstance(log.ends[-1], Finished)


async def test_after_a_crash_the_newest_checkpoint_is_gone_on_from(replica: Replica) -> None:
    """The first replica is told to stop, and so reports nothing and saves nothing more: as if it were gone."""

    def saved_once(event: Event) -> bool:
        return isinstance(event, Progress) and any(isinstance(heard, Checkpointed) for heard in log.events)

    given, log = job(1, LONG), ReportLog(stop_at=saved_once)
    store = embedded(given)
    await replica(log, store, checkpoint_s=0.1, min_step_s=0.05).run(given)
    kept = max(event.step for event in log.ends if isinstance(event, Checkpointed))
    assert latents_key("video_1") not in store.objects

    second = replica(ReportLog(), store, passes := Passes())
    await second.run(replace(given, lease="lease_2", checkpoint_step=kept))
    assert passes.samples == STEPS - kept
    assert torch.equal(final(store), await undisturbed(replica, LONG))


async def test_damaged_checkpoints_cost_steps_and_not_the_job(replica: Replica) -> None:
    given, log = job(1, LONG), ReportLog(park_at=at_step(3))
    store = embedded(given)
    await replica(log, store, min_step_s=0.05).run(given)
    parked = log.ends[-1]
    assert isinstance(parked, Parked)
    key = checkpoint_key("video_1", parked.step)
    store.objects[key] = store.objects[key][:-1]

    second = replica(ReportLog(), store, passes := Passes())
    await second.run(replace(given, lease="lease_2", checkpoint_step=parked.step))
    assert passes.samples == STEPS
    assert torch.equal(final(store), await undisturbed(replica, LONG))


async def test_rows_one_after_the_other_make_the_same_video_in_less_memory(replica: Replica) -> None:
    log, store = ReportLog(), embedded(job(1, spec()))
    sampler = replica(log, store, rows_at_once=1)
    await sampler.run(job(1, spec()))
    assert isinstance(log.ends[-1], Finished)
    assert relative_error(final(store), await undisturbed(replica, spec())) <= 1e-5


async def test_a_checkpoint_of_other_weights_is_no_start(replica: Replica) -> None:
    given, log = job(1, LONG), ReportLog(park_at=at_step(3))
    store = embedded(given)
    await replica(log, store, min_step_s=0.05).run(given)
    parked = log.ends[-1]
    assert isinstance(parked, Parked)
    log = ReportLog()
    second = replica(log, store, passes := Passes(), weights="int8")
    await second.run(replace(given, lease="lease_2", checkpoint_step=parked.step))
    assert passes.samples == given.video.num_inference_steps
    started = log.ends[0]
    assert isinstance(started, Started) and started.device.endswith(", int8 weights")
    assert 0 < relative_error(final(store), await undisturbed(replica, LONG)) < 0.05


async def test_a_checkpoint_that_cannot_be_written_does_not_fail_the_job(replica: Replica) -> None:
    given, refused = job(1, LONG), list[str]()

    def down(key: str) -> bool:
        if key == latents_key("video_1"):
            return False
        refused.append(key)
        return True

    log, store = ReportLog(), embedded(given, down=down)
    await replica(log, store, checkpoint_s=0.05, min_step_s=0.04).run(given)
    assert len(refused) >= 2
    assert [type(event) for event in log.ends] == [Started, Finished]
    assert store.written == [latents_key("video_1")]


async def test_a_sample_that_cannot_be_parked_is_tried_again(replica: Replica) -> None:
    given = job(1, LONG)
    log, store = ReportLog(park_at=at_step(3)), embedded(given, down=lambda key: True)
    await replica(log, store, timing=Timing(store_away_s=0), min_step_s=0.05).run(given)
    failed = log.ends[-1]
    assert isinstance(failed, Failed) and (failed.code, failed.transient) == ("storage_unavailable", True)


SEVERAL = [
    spec("a red circle moving right", guidance_scale=3.0, seed=1),
    spec("a blue square", negative_prompt="red", guidance_scale=5.0, num_inference_steps=9, seed=2),
    spec("a green triangle moving up", guidance_scale=1.0, num_inference_steps=4, seed=3),
    spec("a red circle", width=32, height=48, num_inference_steps=7, seed=4),
]


async def test_several_jobs_at_once_give_what_each_gives_alone(replica: Replica) -> None:
    tasks = [job(number, video) for number, video in enumerate(SEVERAL)]
    log, store = ReportLog(), embedded(*tasks)
    sampler = replica(log, store, min_step_s=0.04)
    await asyncio.gather(*(sampler.run(each) for each in tasks))
    for each in tasks:
        assert [type(event) for event in log.events_of(each.job_id)] == [Started, Finished]
        assert relative_error(final(store, each.job_id), await undisturbed(replica, each.video)) <= 1e-4


async def test_one_of_several_is_stopped_and_one_parked_while_the_others_go_on(replica: Replica) -> None:
    tasks = [job(number, replace(LONG, seed=number)) for number in range(4)]
    log, store = ReportLog(), embedded(*tasks)
    sampler = replica(log, store, min_step_s=0.04)
    calls = [asyncio.create_task(sampler.run(each)) for each in tasks]
    while sum(isinstance(event, Progress) and event.done > 0 for event in log.events) < 4:
        await asyncio.sleep(0.01)
    log.mailbox.post("replica-1", "lease_1", Directive.STOP)
    log.mailbox.post("replica-1", "lease_2", Directive.PARK)
    await asyncio.gather(*calls)
    assert [type(event) for event in log.events_of("video_1")] == [Started]
    assert [type(event) for event in log.events_of("video_2")] == [Started, Parked]
    for number in (0, 3):
        assert [type(event) for event in log.events_of(f"video_{number}")] == [Started, Finished]
        assert relative_error(final(store, f"video_{number}"), await undisturbed(replica, tasks[number].video)) <= 1e-4


async def go_on(replica: Replica, store: MemoryStore, tasks: list[StageTask], log: ReportLog) -> int:
    """Do what is left of the tasks on a fresh replica, from where the first one let go; the steps that took."""
    sampler = replica(ReportLog(), store, passes := Passes())
    for each in tasks:
        kept = max(event.step for event in log.events_of(each.job_id) if isinstance(event, Checkpointed | Parked))
        await sampler.run(replace(each, lease=f"{each.lease} again", checkpoint_step=kept))
    return passes.samples


async def test_out_of_memory_hands_back_every_sample_with_its_last_finished_step(replica: Replica) -> None:
    tasks = [job(0, LONG), job(1, replace(LONG, seed=2)), job(2, replace(LONG, width=32, height=32))]
    slots_when_failed = list[int]()

    def look(event: Event) -> bool:
        if isinstance(event, Failed):
            slots_when_failed.append(log.announced[-1].slots)
        return False

    log, store = ReportLog(stop_at=look), embedded(*tasks)
    sampler = replica(log, store, passes := Passes(fails_at=12), min_step_s=0.04)
    await asyncio.gather(*(sampler.run(each) for each in tasks))

    ends = [log.events_of(each.job_id) for each in tasks]
    failed = [events for events in ends if isinstance(events[-1], Failed)]
    assert failed and slots_when_failed == [0] * len(failed)
    for started, *checkpointed, last in ends:
        assert isinstance(started, Started)
        if isinstance(last, Failed):
            assert (last.code, last.transient) == ("out_of_memory", True)
            assert [type(event) for event in checkpointed] == [Checkpointed]
        else:
            assert isinstance(last, Parked) and "ran out of memory" in last.reason and checkpointed == []
    with pytest.raises(RuntimeError, match="must be replaced: .* ran out of memory"):
        await sampler.check_health()
    await sampler.run(job(3, LONG))
    (refused,) = [event for event in log.events_of("video_3") if isinstance(event, Failed)]
    assert refused.transient and refused.code == "replica_unhealthy"

    assert passes.samples + await go_on(replica, store, tasks, log) == 3 * STEPS
    for each in tasks:
        assert relative_error(final(store, each.job_id), await undisturbed(replica, each.video)) <= 1e-4


SHORT = replace(LONG, num_inference_steps=16)
ILLEGAL_ACCESS = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


async def test_a_broken_device_hands_back_every_sample_with_what_is_on_the_host(replica: Replica) -> None:
    """Its pass has two of the samples, the third is of another size. Their checkpoints are all that is left of them."""
    tasks = [job(0, SHORT), job(1, replace(SHORT, seed=2)), job(2, replace(SHORT, width=32, height=32))]
    log, store = ReportLog(), embedded(*tasks)
    passes = Passes(fails_at=14, error=ILLEGAL_ACCESS)
    sampler = replica(log, store, passes, checkpoint_s=0.02, min_step_s=0.01)
    await asyncio.gather(*(sampler.run(each) for each in tasks))

    ends = [log.events_of(each.job_id)[-1] for each in tasks]
    assert all(isinstance(end, Failed) and end.transient for end in ends)
    codes = [end.code for end in ends if isinstance(end, Failed)]
    assert sorted(set(codes)) == ["device_broken", "replica_unhealthy"]
    assert passes.count == 14, "no further pass was tried"
    with pytest.raises(RuntimeError, match="must be replaced: the device of the replica is broken"):
        await sampler.check_health()
    assert log.announced[-1].slots == 0

    begun = passes.samples
    assert 3 * 16 <= begun + await go_on(replica, store, tasks, log) < 3 * 16 + begun
    for each in tasks:
        assert relative_error(final(store, each.job_id), await undisturbed(replica, each.video)) <= 1e-4


class DeviceTensor(torch.Tensor):
    """Latents on a device with one stream: a copy to the host from another thread waits for the step under way."""

    copies: ClassVar[list[tuple[str, bool]]] = []  # by which thread; whether a step was under way
    stepping: ClassVar[bool] = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item):
            cls.copies.append((threading.current_thread().name, cls.stepping))
            return func(args[0].as_subclass(torch.Tensor), *args[1:], **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def on_device(parts: SamplerParts) -> SamplerParts:
    """A change to a sampler's parts: its latents lie on a device of their own."""

    def prepare(state: SampleState, others: Sequence[Sample]) -> Sample:
        sample = parts.prepare(state, others)
        return replace(sample, latents=sample.latents.as_subclass(DeviceTensor))

    def step(samples: Sequence[Sample]) -> Sequence[Sample | WorkerError]:
        DeviceTensor.stepping = True
        plain = [replace(sample, latents=sample.latents.as_subclass(torch.Tensor)) for sample in samples]
        stepped = parts.step(plain)
        DeviceTensor.stepping = False
        return [
            replace(new, latents=new.latents.as_subclass(DeviceTensor)) if isinstance(new, Sample) else new
            for new in stepped
        ]

    return replace(parts, prepare=prepare, step=step)


async def test_nothing_is_copied_from_the_device_but_between_two_steps(replica: Replica) -> None:
    """Checkpoints, previews, a park, the last latents and running out of memory: by the loop's thread alone."""
    DeviceTensor.copies.clear()
    tasks = [job(0, SHORT), job(1, replace(SHORT, seed=2)), job(2, replace(SHORT, width=32, height=32))]
    log = ReportLog(park_at=lambda event: isinstance(event, Progress) and event.done > 12)
    store = embedded(*tasks)
    passes = Passes(fails_at=30)
    sampler = replica(log, store, on_device, passes, checkpoint_s=0.02, min_step_s=0.05)
    await asyncio.gather(*(sampler.run(each) for each in tasks))
    events = [type(event) for event in log.ends]
    assert Checkpointed in events and set(events[-3:]) & {Parked, Finished, Failed}
    assert any(isinstance(event, Progress) and event.preview for event in log.events)
    assert len(DeviceTensor.copies) >= 6
    assert set(DeviceTensor.copies) == {("denoise", False)}


async def test_a_sample_that_ceases_to_be_numbers_fails_at_once_and_alone(replica: Replica) -> None:
    tasks = [job(0, SHORT), job(1, replace(SHORT, seed=2))]
    log, store = ReportLog(), embedded(*tasks)

    def faulty(parts: SamplerParts) -> SamplerParts:
        def prepare(state: SampleState, others: Sequence[Sample]) -> Sample:
            sample = parts.prepare(state, others)
            if state.spec.seed == 2:
                sample.latents[3, 1, 2, 2] = float("nan")
            return sample

        return replace(parts, prepare=prepare)

    sampler = replica(log, store, faulty, checkpoint_s=0.0001, min_step_s=0.04)
    await asyncio.gather(*(sampler.run(each) for each in tasks))
    failed = log.events_of("video_1")[-1]
    assert isinstance(failed, Failed) and (failed.code, failed.transient) == ("non_finite_latents", True)
    assert "in step 1 of 16" in failed.message
    assert [key for key in store.written if "video_1/" in key] == [], "nothing of it is worth a checkpoint"
    assert isinstance(log.events_of("video_0")[-1], Finished)
    await sampler.check_health()
    assert relative_error(final(store, "video_0"), await undisturbed(replica, SHORT)) <= 1e-4


async def test_a_replica_that_is_to_leave_parks_all_it_has(replica: Replica) -> None:
    tasks = [job(number, replace(LONG, seed=number, width=32 + 32 * (number % 2))) for number in range(4)]
    log, store = ReportLog(), embedded(*tasks)
    sampler = replica(log, store, passes := Passes(), min_step_s=0.04)
    calls = [asyncio.create_task(sampler.run(each)) for each in tasks]
    while sum(isinstance(event, Progress) and event.done > 0 for event in log.events) < 4:
        await asyncio.sleep(0.01)
    passes.may_go_on.clear()
    await asyncio.to_thread(passes.held.wait)
    begun = passes.count
    await sampler.worker.drain("the replica was told to leave")
    passes.may_go_on.set()
    await asyncio.gather(*calls)
    assert passes.count == begun, "each leaves at the end of the step that was under way"
    for each in tasks:
        _, parked = log.events_of(each.job_id)
        assert isinstance(parked, Parked) and parked.reason == "the replica was told to leave"
        assert checkpoint_key(each.job_id, parked.step) in store.objects
    assert log.announced[-1].slots == 0

    assert passes.samples + await go_on(replica, store, tasks, log) == 4 * STEPS
    for each in tasks:
        assert relative_error(final(store, each.job_id), await undisturbed(replica, each.video)) <= 1e-4


async def test_a_step_takes_at_least_its_time(replica: Replica) -> None:
    given, log = job(1, spec(num_inference_steps=3)), ReportLog()
    await replica(log, embedded(given), min_step_s=0.1).run(given)
    finished = log.ends[-1]
    assert isinstance(finished, Finished) and finished.seconds["denoise"] >= 0.3


async def test_previews_come_with_the_progress(replica: Replica) -> None:
    video = spec(num_inference_steps=24, guidance_scale=1.0)
    log, store = ReportLog(), await encoded(video)
    sampler = replica(log, store, min_step_s=0.05)
    await sampler.run(task(Stage.SAMPLING, video))
    pictures = [event.preview for event in log.events if isinstance(event, Progress) and event.preview]
    assert pictures and all(picture[:4] == b"RIFF" for picture in pictures)
    assert len(set(pictures)) > 1


class SlowStore(MemoryStore):
    """Holds the first read or write of a key with this text in it until it is let go on.

    held: it is held now. touched: keys that were read or listed.
    """

    def __init__(self, of: MemoryStore, text: str) -> None:
        super().__init__()
        self.objects, self.touched = of.objects, list[str]()
        self.held, self.may_go_on = asyncio.Event(), asyncio.Event()
        self._text = text

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        await self._hold(key)
        await super().put(key, data, content_type)

    async def get(self, key: str) -> bytes:
        self.touched.append(key)
        await self._hold(key)
        return await super().get(key)

    async def list_keys(self, prefix: str) -> list[str]:
        self.touched.append(prefix)
        return await super().list_keys(prefix)

    async def _hold(self, key: str) -> None:
        if self._text in key and not self.held.is_set():
            self.held.set()
            await self.may_go_on.wait()


def direct(sampler: Any, *directives: Directive, lease: str = "lease_1") -> None:
    """As the registry would."""
    for directive in directives:
        running = sampler.worker.tasks[lease]
        running.stop() if directive is Directive.STOP else running.ask_to_park("make room")


async def has_stepped(sampler: Any, lease: str = "lease_1") -> None:
    """Return once the task has done a step."""
    while not ((running := sampler.worker.tasks.get(lease)) and running.latest and running.latest.done):
        await asyncio.sleep(0.01)


async def test_a_request_to_park_that_answers_the_start_costs_no_loading(replica: Replica) -> None:
    given = replace(job(1, LONG), checkpoint_step=7)
    log, store = ReportLog(park_at=lambda event: isinstance(event, Started)), SlowStore(embedded(given), "never")
    await replica(log, store).run(given)
    assert log.ends[1:] == [Parked(7, "the registry asked for it")]
    assert [key for key in store.touched if key.startswith("jobs/")] == [] and store.changes == []


async def test_a_request_to_park_while_the_state_is_loaded_runs_no_step(replica: Replica) -> None:
    given, log = job(1, LONG), ReportLog()
    store = SlowStore(embedded(given), "prompt_embeds")
    sampler = replica(log, store, passes := Passes())
    call = asyncio.create_task(sampler.run(given))
    await store.held.wait()
    direct(sampler, Directive.PARK)
    store.may_go_on.set()
    await call
    assert log.ends[1:] == [Parked(0, "make room")]
    assert passes.count == 0 and store.changes == []
    assert passes.prepared == 0


async def test_a_request_to_park_while_a_checkpoint_is_loaded_lets_go_of_that_checkpoint(replica: Replica) -> None:
    given, first = job(1, LONG), ReportLog(park_at=at_step(3))
    kept = embedded(given)
    await replica(first, kept, min_step_s=0.05).run(given)
    parked = first.ends[-1]
    assert isinstance(parked, Parked)

    log, store = ReportLog(), SlowStore(kept, "sample-")
    sampler = replica(log, store, passes := Passes())
    call = asyncio.create_task(sampler.run(replace(given, checkpoint_step=parked.step)))
    await store.held.wait()
    direct(sampler, Directive.PARK, Directive.PARK)
    store.may_go_on.set()
    await call
    assert log.ends[1:] == [Parked(parked.step, "make room")]
    assert passes.count == 0 and store.changes == []


async def test_a_request_to_park_while_there_is_no_memory_gives_the_slot_back(replica: Replica) -> None:
    tasks, log = [job(1, LONG), job(2, LONG)], ReportLog()
    profile, taken = MemoryProfile(100, 0, 10, 0, 0), SampleFootprint(LONG.clip.latents)
    gate = MemoryGate(profile, budget=profile.needed([taken]))
    assert await gate.reserve(running_task("video_3"), taken)
    sampler = replica(log, embedded(*tasks), passes := Passes(), lambda parts: replace(parts, memory=gate))
    calls = [asyncio.create_task(sampler.run(each)) for each in tasks]
    while sum(running.at_work for running in sampler.worker.tasks.values()) < 2:
        await asyncio.sleep(0.01)
    direct(sampler, Directive.PARK)
    direct(sampler, Directive.PARK, Directive.STOP, lease="lease_2")
    await asyncio.gather(*calls)
    assert log.events_of("video_1")[1:] == [Parked(0, "make room")]
    assert [type(event) for event in log.events_of("video_2")] == [Started]
    assert passes.count == 0


async def test_a_request_to_park_in_the_last_step_is_too_late(replica: Replica) -> None:
    given, log = job(1, spec(num_inference_steps=2, guidance_scale=1.0)), ReportLog()
    store = embedded(given)
    sampler = replica(log, store, passes := Passes(), min_step_s=0.05)
    call = asyncio.create_task(sampler.run(given))
    while passes.count < 1:
        await asyncio.sleep(0.001)
    passes.may_go_on.clear()
    await asyncio.to_thread(passes.held.wait)
    assert passes.count == 2
    direct(sampler, Directive.PARK, Directive.PARK)
    passes.may_go_on.set()
    await call
    assert [type(event) for event in log.ends] == [Started, Finished]
    assert store.written == [latents_key("video_1")]


async def test_a_request_to_park_waits_for_no_checkpoint_that_is_on_its_way(replica: Replica) -> None:
    given, log = job(1, LONG), ReportLog()
    store = SlowStore(embedded(given), "sample-")
    sampler = replica(log, store, checkpoint_s=0.05, min_step_s=0.04)
    call = asyncio.create_task(sampler.run(given))
    await store.held.wait()
    direct(sampler, Directive.PARK)
    await call
    parked = log.ends[-1]
    assert isinstance(parked, Parked) and store.written == [checkpoint_key("video_1", parked.step)]


async def test_nor_does_the_end_of_the_sampling(replica: Replica) -> None:
    given, log = job(1, replace(LONG, num_inference_steps=8)), ReportLog()
    store = SlowStore(embedded(given), "sample-")
    await replica(log, store, checkpoint_s=0.02, min_step_s=0.05).run(given)
    assert store.held.is_set() and store.written == [latents_key("video_1")]
    assert [type(event) for event in log.ends] == [Started, Finished]


async def test_a_parked_sample_leaves_older_checkpoints_alone(replica: Replica) -> None:
    """From the moment that it is told the job may be another replica's, whose checkpoints nobody else may touch."""
    given, changes_when_parked = job(1, replace(LONG, num_inference_steps=40)), list[int]()
    store = SlowStore(embedded(given), "never")

    def look(event: Event) -> bool:
        if isinstance(event, Parked):
            changes_when_parked.append(len(store.changes))
        if sum(isinstance(heard, Checkpointed) for heard in log.ends) == 2:
            sampler.recorder.checkpoint_s = 1000
        return False

    log = ReportLog(stop_at=look, park_at=at_step(20))
    sampler = replica(log, store, checkpoint_s=0.1, min_step_s=0.04)
    await sampler.run(given)
    parked = log.ends[-1]
    assert isinstance(parked, Parked) and sum(isinstance(event, Checkpointed) for event in log.ends) == 2
    assert store.changes[-1] == ("put", checkpoint_key("video_1", parked.step))
    assert changes_when_parked == [len(store.changes)]
    await replica(ReportLog(), store, checkpoint_s=0.02, min_step_s=0.04).run(
        replace(given, checkpoint_step=parked.step)
    )
    kept = [key for key in store.objects if "sample-" in key]
    assert len(kept) == 2, "the job's next checkpoint tidies up"


@pytest.mark.parametrize("directives", [(Directive.STOP,), (Directive.PARK, Directive.STOP)])
async def test_a_stop_while_the_state_is_written_begins_no_other_write(
    replica: Replica, directives: tuple[Directive, ...]
) -> None:
    given, log = job(1, LONG), ReportLog()
    store = SlowStore(embedded(given), "sample-")
    sampler = replica(log, store, checkpoint_s=1000, min_step_s=0.04)
    call = asyncio.create_task(sampler.run(given))
    await has_stepped(sampler)
    direct(sampler, Directive.PARK)
    await store.held.wait()
    direct(sampler, *directives)
    store.may_go_on.set()
    await call
    assert len(store.written) == 1, "the one that was on its way"


class CallingGate(MemoryGate):
    """Has memory for all, and calls `on_release` when a sample has left the loop."""

    def __init__(self, on_release: Callable[[], None]) -> None:
        super().__init__(MemoryProfile(1, 0, 0, 0, 0), budget=1 << 40)
        self._on_release = on_release

    def release(self, running: RunningTask) -> None:
        super().release(running)
        self._on_release()


async def test_a_stop_after_the_last_step_leaves_no_latents(replica: Replica) -> None:
    given, log = job(1, LONG), ReportLog()
    store = embedded(given)
    gate = CallingGate(lambda: direct(sampler, Directive.STOP))
    sampler = replica(log, store, passes := Passes(), lambda parts: replace(parts, memory=gate))
    await sampler.run(given)
    assert passes.count == STEPS
    assert store.changes == []
    assert [type(event) for event in log.ends] == [Started]


async def test_a_store_that_comes_back_costs_no_step(replica: Replica) -> None:
    refused = list[str]()

    def down(key: str) -> bool:
        refused.append(key)
        return len(refused) < 4

    given = job(1, LONG)
    log, store = ReportLog(park_at=at_step(3)), embedded(given, down=down)
    await replica(log, store, timing=Timing(store_retry_s=0.001), min_step_s=0.05).run(given)
    parked = log.ends[-1]
    assert isinstance(parked, Parked) and store.written == [checkpoint_key("video_1", parked.step)]
    assert len(set(refused)) == 1


async def test_an_unforeseen_error_beside_the_sampling_is_logged_and_the_next_checkpoint_is_tried(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    given, tried = job(1, LONG), list[str]()

    def down(key: str) -> bool:
        tried.append(key)
        if len(tried) <= 2:
            raise ZeroDivisionError("x / 0")
        return False

    log, store = ReportLog(), embedded(given, down=down)
    with captured(caplog):
        await replica(log, store, checkpoint_s=0.05, min_step_s=0.04).run(given)
    errors = [record for record in caplog.records if record.exc_info and record.exc_info[0] is ZeroDivisionError]
    assert [record.getMessage() for record in errors] == [
        f"no checkpoint this time; unforeseen error {number} beside this sampler" for number in (1, 2)
    ]
    assert [type(event) for event in log.ends][1:3] == [Checkpointed] * 2
    assert isinstance(log.ends[-1], Finished)
    assert torch.equal(final(store), await undisturbed(replica, LONG))


async def test_a_picture_that_fails_costs_neither_the_sample_nor_its_checkpoints(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bytes:
        raise ZeroDivisionError("no colours")

    given, log = job(1, LONG), ReportLog()
    sampler = replica(
        log, embedded(given), lambda parts: replace(parts, render_preview=fail), checkpoint_s=0.1, min_step_s=0.04
    )
    with captured(caplog):
        await sampler.run(given)
    failed = [record for record in caplog.records if "no preview this time" in record.getMessage()]
    assert 1 <= len(failed) <= STEPS // 5, "it is tried again at the next preview's turn only"
    assert any(isinstance(event, Checkpointed) for event in log.ends) and isinstance(log.ends[-1], Finished)


async def test_the_first_step_waits_for_no_preview_map(replica: Replica, tmp_path: Path) -> None:
    given, log = job(1, LONG), ReportLog()
    sampler = replica(log, SlowStore(embedded(given), "preview"), source=model_without_map(tmp_path))
    await sampler.run(given)
    assert [type(event) for event in log.ends] == [Started, Finished]


async def test_the_device_time_of_a_batch_is_shared_by_its_samples(replica: Replica) -> None:
    tasks = [job(number, video) for number, video in enumerate(SEVERAL)]
    log, clock, took = ReportLog(), Clock(), list[int]()

    def timed(parts: SamplerParts) -> SamplerParts:
        def step(samples: Sequence[Sample]) -> Sequence[Sample | WorkerError]:
            took.append(1_000_000_000 + len(took))
            clock.advance(took[-1])
            return parts.step(samples)

        return replace(parts, step=step, now_ns=clock)

    sampler = replica(log, embedded(*tasks), timed)
    await asyncio.gather(*(sampler.run(each) for each in tasks))
    reported = [event.device_s for event in log.events if isinstance(event, Finished)]
    assert sum(round(seconds * 1e9) for seconds in reported) == sum(took)
    for each in tasks:
        own = [r.event.device_s for r in log.reports if r.job_id == each.job_id and isinstance(r.event, Progress)]
        assert own == sorted(own)


async def test_a_parked_sample_reports_its_device_time(replica: Replica) -> None:
    given, log = job(1, LONG), ReportLog(park_at=at_step(3))
    await replica(log, embedded(given), min_step_s=0.05).run(given)
    parked = log.ends[-1]
    assert isinstance(parked, Parked) and parked.device_s >= parked.step * 0.05


def shapes_lora(folder: Path, seed: int) -> LoraSettings:
    transformer = load_transformer(SHAPES, "float32", torch.device("cpu"))
    return LoraSettings(source=str(peft_lora(folder, transformer, seed).weights.parent))


async def test_what_other_weights_of_a_lora_began_is_begun_again(
    replica: Replica, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name and the request are the same."""
    old, new = ({"ink": shapes_lora(tmp_path / name, seed)} for seed, name in enumerate(("old", "new")))
    adapted, whole, plain = (job(n, replace(LONG, lora=lora)) for n, lora in enumerate(("ink", "ink", None)))
    store, log = embedded(adapted, whole, plain), ReportLog(park_at=at_step(3))
    await replica(log, store, loras=old, min_step_s=0.05).run(adapted)
    (parked,) = (event for event in log.ends if isinstance(event, Parked))
    resumed = replace(adapted, lease="lease_2", checkpoint_step=parked.step)
    begun = dict(store.objects)

    same = replica(ReportLog(), store, passes := Passes(), loras=old)
    await same.run(resumed)
    assert passes.samples == STEPS - parked.step
    await same.run(whole)
    await same.run(plain)
    by_old = final(store, adapted.job_id)
    assert torch.equal(by_old, final(store, whole.job_id))
    assert relative_error(by_old, final(store, plain.job_id)) > 0.01

    store.objects = begun
    with captured(caplog):
        await replica(ReportLog(), store, passes := Passes(), loras=new).run(resumed)
    assert passes.samples == STEPS
    assert checkpoint_key(adapted.job_id, parked.step) in caplog.text and "its revision is" in caplog.text
    assert relative_error(final(store, adapted.job_id), by_old) > 0.01


async def test_a_lora_that_was_taken_away_fails_its_videos_with_the_known_ones(
    replica: Replica, tmp_path: Path
) -> None:
    given = job(1, spec(lora="gone"))
    log = ReportLog()
    await replica(log, embedded(given), loras={"ink": shapes_lora(tmp_path, 1)}).run(given)
    end = log.ends[-1]
    assert isinstance(end, Failed) and (end.code, end.transient) == ("lora_unknown", False)
    assert end.message == "the LoRA gone is not served any more; served are ink"


def test_a_lora_of_another_model_stops_the_start(replica: Replica, tmp_path: Path) -> None:
    tensors = {"proj_out.lora_A.weight": torch.zeros(4, 3072), "proj_out.lora_B.weight": torch.zeros(48, 4)}
    written(tmp_path, tensors)
    with pytest.raises(PermanentError, match=r"^the LoRA ink cannot be used: .*proj_out.lora_A.weight is \[4, 3072\]"):
        replica(ReportLog(), MemoryStore(), loras={"ink": LoraSettings(source=str(tmp_path))})
