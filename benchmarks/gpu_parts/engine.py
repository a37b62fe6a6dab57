"""The sampler's loop on the device: what a sample waits for when it is cancelled, parked or resumed, what its
neighbours notice, how long the steps of each quality take, and a whole video."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import full_size as fs
from benchmarks.gpu_parts.bench import DTYPE, STEPS, Bench, Row, Rows, Values
from benchmarks.gpu_parts.measuring import first_ms, gigabytes, milliseconds, relative_error, rounded, seconds
from deployments.errors import StoppedError, TransientError
from deployments.messages import Stage, StageTask
from deployments.mochi.denoise import Sample, denoise_step, initial_noise
from deployments.mochi.fp8_attention import check_fp8_attention
from deployments.mochi.packed_weights import pack_projections
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise, to_uint8
from deployments.step_rules import DEFAULT_RULES, AttentionName, PlannedStep, StepRules

LOOP_STEPS = 4
# As the profiles of Mochi 1 in configs/ have them: (steps, rules).
QUALITIES: dict[str, tuple[int, StepRules]] = {
    "exact": (STEPS, DEFAULT_RULES),
    "fast": (STEPS, StepRules(guidance_from=0.01, reuse_run=1)),
    "draft": (16, StepRules(guidance_from=0.01, reuse_run=1)),
}
FORMS: dict[AttentionName, str] = {"full": "", "fp8": ", fp8 attention"}
PATIENCE_S = 60


def qualities(bench: Bench) -> Rows:
    """The long video: each kind of step that a quality has, compiled; the video's time is their sum."""
    transformer = bench.transformer()
    pack_projections(transformer)
    clip = bench.clip(transformer, bench.sizes.long_frames)
    for attention, words in FORMS.items():
        known: dict[tuple[PlannedStep, int], float] = {}
        for name, (steps, rules) in QUALITIES.items():
            spec = replace(clip.spec, num_inference_steps=steps, rules=replace(rules, attention=attention))
            sample = fs.our_sample(transformer, spec, *clip.prompts)
            yield Row("quality", f"{name}, {steps} steps{words}", partial(_quality, bench, sample, known))


def _quality(bench: Bench, sample: Sample, known: dict[tuple[PlannedStep, int], float]) -> Values:
    """known: milliseconds of each kind of step and of rows of which something is kept, so that none is timed twice."""
    if bench.on_cuda and sample.rules.attention == "fp8":
        check_fp8_attention("bfloat16", bench.device)
    plan = sample.plan
    total = 0.0
    for index, planned in enumerate(plan.steps):
        kind = planned, plan.rows_kept(index)
        if kind not in known:
            known[kind] = _step_ms(bench, sample, index)
        total += known[kind]
    found: Values = {"s": seconds(total), "rows": rounded(plan.mean_full_rows)}
    for (planned, kept), ms in known.items():
        words = f"{planned.rows}_rows_{'reused' if planned.reuses else 'full'}{'_kept' if kept else ''}"
        found[f"{words}_s"] = seconds(ms)
    return found


def _step_ms(bench: Bench, sample: Sample, index: int) -> float:
    before = replace(sample, step=index)
    if before.next_step.reuses:
        full = next(step for step in range(index - 1, -1, -1) if not sample.plan.steps[step].reuses)
        before = replace(sample, step=full)
        for _ in range(full, index):
            before = denoise_step(bench.transformer(), [before], bench.compiled_block)[0]
    return milliseconds(bench.device, lambda: denoise_step(bench.transformer(), [before], bench.compiled_block), runs=2)


def engine(bench: Bench) -> Rows:
    """A few latent frames through `StepLoop` and `Denoiser`, as a replica has them."""
    from deployments.sampler.denoiser import Denoiser  # needs pydantic

    transformer = bench.transformer()
    block = bench.compiled_block if bench.compiled_block.graphs else None
    loop = Loop(bench, Denoiser(transformer, 0.0, block))
    alone = loop.run(loop.finish(1))
    beside = loop.run(loop.two_at_once(exact=False))
    apart = loop.run(loop.two_at_once(exact=True))
    yield Row("engine", "a step", lambda: {"ms": rounded(loop.step_ms())})
    yield Row("engine", "again, alone", lambda: _same(loop.run(loop.finish(1)), alone))
    yield Row("engine", "exact, beside another", lambda: _same(apart, alone))
    yield Row("engine", "in a batch with another", lambda: _same(beside, alone))
    yield Row("engine", "cancelled during a step", lambda: loop.run(loop.cancelled()))
    yield Row("engine", "parked during a step, and resumed", lambda: loop.run(loop.parked(alone)))
    yield Row("engine", "a sample of NaN beside it", lambda: loop.run(loop.beside_nan(beside)))
    yield Row("engine", "copies between two steps, long video", partial(_copies, bench))
    loop.close()


def _same(got: Tensor, wanted: Tensor) -> Values:
    return {"same_bits": torch.equal(got, wanted), "error": relative_error(got, wanted)}


def _copies(bench: Bench) -> Values:
    """To the host: a checkpoint's latents, a preview's frame."""
    from deployments.sampler.recorder import PreviewParts
    from deployments.sampler.step_loop import Snapshot

    sample = bench.clip(bench.transformer(), bench.sizes.long_frames).sample
    stepped = replace(sample, step=1)
    return {
        "checkpoint_ms": rounded(_median_ms(bench, lambda: Snapshot.of(sample))),
        "preview_ms": rounded(_median_ms(bench, lambda: PreviewParts.of(sample, stepped))),
        "mb": rounded(sample.latents.nbytes / 1e6),
    }


def _median_ms(bench: Bench, work: Callable[[], object]) -> float:
    return sorted(first_ms(bench.device, work) for _ in range(5))[2]


class Loop:
    """A step loop with a full-size transformer, and samples of a short video to send through it."""

    def __init__(self, bench: Bench, denoiser: Any) -> None:
        from deployments.sampler.step_loop import StepLoop

        self._bench = bench
        self._denoiser = denoiser
        self._executor = ThreadPoolExecutor(1)
        sizes = bench.sizes
        self._spec = fs.clip_spec(sizes.width, sizes.height, sizes.engine_frames, LOOP_STEPS)
        self._loop = StepLoop(denoiser.step, max_tokens=10**6)

    def close(self) -> None:
        self._loop.close()
        self._executor.shutdown()

    @staticmethod
    def run(work: Any) -> Any:
        return asyncio.run(asyncio.wait_for(work, PATIENCE_S))

    def step_ms(self) -> float:
        sample = self._denoiser.prepare(self._state(1), [])
        return milliseconds(self._bench.device, lambda: self._denoiser.step([sample]), runs=5)

    async def finish(self, seed: int) -> Tensor:
        """The latents of a sample that had the loop to itself."""
        latents: Tensor = (await self._enter(seed).entry.result).latents
        return latents

    async def two_at_once(self, exact: bool) -> Tensor:
        """The latents of the first of two that came together. exact: it shares no pass."""
        first, second = self._enter(1, exact), self._enter(2, exact)
        await second.entry.result
        latents: Tensor = (await first.entry.result).latents
        return latents

    async def cancelled(self) -> Values:
        """From the wish to the end of it, while another one goes on."""
        first, second = self._enter(1), self._enter(2)
        await first.stepped.wait()
        begun = time.perf_counter()
        first.running.stop()
        try:
            await first.entry.result
        except StoppedError:
            took = time.perf_counter() - begun
        else:
            raise RuntimeError("it went on to its end")
        return {"ms": rounded(took * 1e3), "other_done": (await second.entry.result).done}

    async def parked(self, wanted: Tensor) -> Values:
        """From the wish until its latents are on the host; then it goes on from them."""
        sample = self._enter(1)
        await sample.stepped.wait()
        begun = time.perf_counter()
        sample.running.ask_to_park("measured")
        snapshot = await sample.entry.result
        took = time.perf_counter() - begun
        if snapshot.done:
            raise RuntimeError("it was done before it was parked")
        resumed = self._enter(1, state=replace(self._state(1), step=snapshot.step, latents=snapshot.latents))
        return {"ms": rounded(took * 1e3), "step": snapshot.step, **_same((await resumed.entry.result).latents, wanted)}

    async def beside_nan(self, wanted: Tensor) -> Values:
        """What becomes of it, and of the sample in the same batch."""
        bad = self._state(2)
        first = self._enter(1)
        second = self._enter(2, state=replace(bad, latents=bad.latents * torch.nan))
        try:
            await second.entry.result
        except TransientError as error:
            code = error.code
        else:
            raise RuntimeError("NaN went unseen")
        return {"code": code, **_same((await first.entry.result).latents, wanted)}

    def _state(self, seed: int) -> Any:
        from deployments.sampler.state import SampleState

        dim = self._bench.transformer().config.text_embed_dim
        padded, lengths = self._bench.sizes.text_tokens, self._bench.sizes.lengths
        negative, prompt = (fs.random_prompt(dim, length, padded, seed=seed) for length in lengths)
        spec = replace(self._spec, seed=seed)
        return SampleState(spec, "benchmark", "bfloat16", 0, initial_noise(spec), fs.embeddings(prompt, negative))

    def _enter(self, seed: int, exact: bool = False, state: Any = None) -> "Entered":
        from deployments.replica.running_task import RunningTask

        start = self._state(seed) if state is None else state
        task = StageTask(f"video_{seed}", "lease", Stage.SAMPLING, 1, start.spec)
        running = RunningTask(task, self._executor, asyncio.Event())
        stepped = asyncio.Event()
        events = asyncio.get_running_loop()

        def after_step(sample: Sample, previous: Sample | None) -> None:
            if previous is not None:
                events.call_soon_threadsafe(stepped.set)

        entry = self._loop.add(running, lambda: self._denoiser.prepare(start, self._loop.samples), after_step, exact)
        return Entered(running, entry, stepped)


@dataclass(frozen=True, slots=True)
class Entered:
    """A sample on its way through the loop."""

    running: Any
    entry: Any
    stepped: asyncio.Event  # it has done a step


def whole_video(bench: Bench) -> Rows:
    """A draft of the long video from noise to bytes on the host, by the clock: the steps, then the decoder beside it.

    The transformer stays where it is, as on one GPU that the stages share; the video's file is not written."""
    transformer = bench.transformer()
    steps, rules = QUALITIES["draft"]
    clip = bench.clip(transformer, bench.sizes.long_frames)
    spec = replace(clip.spec, num_inference_steps=steps, rules=rules)
    vae = fs.random_vae(bench.device, DTYPE, **bench.sizes.vae)
    decoder = StreamingDecoder(vae, "each_upsample")
    _decode(decoder, torch.randn(spec.clip.latents, device=bench.device, dtype=DTYPE)[:, :3])  # what is compiled once
    sample = fs.our_sample(transformer, spec, *clip.prompts)
    yield Row("video", "draft", partial(_video, bench, sample, decoder, vae))


def _video(bench: Bench, sample: Sample, decoder: StreamingDecoder, vae: Any) -> Values:
    if bench.on_cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    latents: list[Tensor] = []

    def denoise() -> None:
        current = sample
        while not current.done:
            current = denoise_step(bench.transformer(), [current], bench.compiled_block)[0]
        latents.append(current.latents)

    sampling_ms = first_ms(bench.device, denoise)
    frames: list[Tensor] = []
    decoding_ms = first_ms(
        bench.device, lambda: frames.extend(_decode(decoder, denormalise(vae, latents[0]).to(vae.dtype)))
    )
    return {
        "sampling_s": seconds(sampling_ms),
        "decoding_s": seconds(decoding_ms),
        "s": seconds(sampling_ms + decoding_ms),
        "frames": sum(len(piece) for piece in frames),
        "peak_gb": gigabytes(torch.cuda.max_memory_allocated(bench.device)) if bench.on_cuda else None,
    }


def _decode(decoder: StreamingDecoder, latents: Tensor) -> list[Tensor]:
    return [to_uint8(piece).cpu() for piece in decoder.decode(latents)]
