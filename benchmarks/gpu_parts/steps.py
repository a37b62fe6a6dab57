"""Guided steps of the full-size transformer: ours and the stock pipeline's, eager, compiled and in fp8."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import full_size as fs
from benchmarks.gpu_parts.bench import DTYPE, STEPS, Bench, Clip, NotHereError, Row, Rows, Values
from benchmarks.gpu_parts.measuring import (
    by_kind,
    count_syncs,
    first_ms,
    gigabytes,
    peak_bytes,
    relative_error,
    seconds,
    timed,
)
from deployments.dtypes import WeightsName
from deployments.mochi.block import RunBlock, run_block
from deployments.mochi.denoise import denoise_step
from deployments.mochi.packed_weights import pack_projections
from deployments.mochi.probe import probe_batches
from deployments.mochi.weights.quantised_weights import quantise
from deployments.sampler.memory_profile import SampleFootprint
from deployments.step_rules import StepRules


def long_steps(bench: Bench) -> Rows:
    """Ours and stock at the model's largest video, and where their time goes."""
    clip = bench.clip(bench.transformer(), bench.sizes.long_frames)
    ours = _our_step(clip)
    stock = _stock_step(clip)
    yield _step("ours", bench, clip, ours, clip.our_operations())
    yield _kinds("our step", bench, ours)
    yield _step("stock", bench, clip, stock, clip.stock_operations())
    yield _kinds("stock step", bench, stock)


def short_steps(bench: Bench) -> Rows:
    """Every eager way to do a step of half the length, with the waits for the device."""
    clip = bench.clip(bench.transformer(), bench.sizes.short_frames)
    ours = clip.our_operations()
    stock = clip.stock_operations()
    yield _step("ours", bench, clip, _our_step(clip), ours, syncs=True)
    yield _step("ours, 2 samples", bench, clip, _our_step(clip, 2), 2 * ours, samples=2, syncs=True)
    yield _step("stock", bench, clip, _stock_step(clip), stock, syncs=True)
    constants = fs.step_constants(clip.transformer, clip.spec, clip.prompt, clip.negative)
    yield _step("constant for a request", bench, clip, constants, 0, syncs=True)
    yield Row("step", f"MochiPipeline, {clip.spec.num_frames} frames", partial(_pipeline, bench, clip))


def compiled_steps(bench: Bench) -> Rows:
    """Our step with its blocks compiled, which takes a minute or two, as the sampler does it when it starts."""
    yield from _start(bench)
    clip = bench.clip(bench.transformer(), bench.sizes.long_frames)
    step = _our_step(clip, block=bench.compiled_block)
    yield _step("ours, compiled", bench, clip, step, clip.our_operations())
    yield _kinds("our step, compiled", bench, step)
    yield Row("change", "compiled against eager", partial(_change_error, clip, step, _our_step(clip)))


def other_prompts(bench: Bench) -> Rows:
    """Prompts, videos and batches of other sizes through the compiled block: none should compile anything."""
    yield from _start(bench)
    sizes = bench.sizes
    for length in (sizes.prompt_length, *sizes.other_lengths):
        clip = bench.clip(bench.transformer(), sizes.long_frames, length)
        step = _our_step(clip, block=bench.compiled_block)
        yield Row("compiling", f"prompt of {length} tokens", partial(_compiling, bench, step))
    clip = bench.clip(bench.transformer(), sizes.short_frames)
    for samples in (1, 2):
        step = _our_step(clip, samples, bench.compiled_block)
        name = f"{samples} of {sizes.short_frames} frames"
        yield Row("compiling", name, partial(_compiling, bench, step))


def fp8_steps(bench: Bench) -> Rows:
    """Attention in 8 bits, weights in 8 bits, both; compiled."""
    if not bench.on_cuda:
        raise NotHereError("needs CUDA")
    clip = bench.clip(bench.transformer(), bench.sizes.long_frames)
    in_fp8 = _in_fp8(clip)
    wanted = _our_step(clip)()
    block = bench.new_compiled_block()
    step = _our_step(clip, block=block)
    yield _step("ours, compiled, beside fp8", bench, clip, step, clip.our_operations())
    step = _our_step(in_fp8, block=block)
    yield _step("ours, fp8 attention, compiled", bench, clip, step, clip.our_operations())
    yield _kinds("our step, fp8 attention, compiled", bench, step)
    yield Row("change", "fp8 attention against bf16", partial(_change_error, clip, step, lambda: wanted))
    forms: tuple[WeightsName, ...] = ("fp8", "int8")
    for weights in forms:
        transformer = bench.take_transformer()
        quantise(transformer, weights)
        clip = bench.clip(transformer, bench.sizes.long_frames)
        block = bench.new_compiled_block()
        step = _our_step(clip, block=block)
        yield _step(f"ours, {weights}, compiled", bench, clip, step, clip.our_operations())
        yield _kinds(f"our step, {weights}, compiled", bench, step)
        yield Row("change", f"{weights} against bf16", partial(_change_error, clip, step, lambda: wanted))
        step = _our_step(_in_fp8(clip), block=block)
        yield _step(f"ours, {weights} and fp8 attention, compiled", bench, clip, step, clip.our_operations())
        yield Row("change", f"{weights} and fp8 attention", partial(_change_error, clip, step, lambda: wanted))


def _in_fp8(clip: Clip) -> Clip:
    return replace(clip, sample=replace(clip.sample, rules=StepRules(attention="fp8")))


def memory(bench: Bench) -> Rows:
    """What the sampler foretells for the long video from two small probes, and what a step of it takes."""
    yield Row("memory", "foretold", partial(_foretold, bench))
    yield Row("memory", "taken", partial(_taken, bench))


def _our_step(clip: Clip, samples: int = 1, block: RunBlock = run_block) -> fs.Step:
    return fs.our_step(clip.transformer, [clip.sample] * samples, block)


def _stock_step(clip: Clip) -> fs.Step:
    return fs.stock_step(clip.transformer, clip.sample, clip.prompt, clip.negative)


def _step(
    name: str, bench: Bench, clip: Clip, step: fs.Step, operations: int, samples: int = 1, syncs: bool = False
) -> Row:
    """operations: of one step, all samples together; 0 for what they are not counted of."""

    def measure() -> Values:
        ms, figures = timed(bench.device, step)
        return {
            **figures,
            "s_per_sample": seconds(ms / samples),
            "video_s": seconds(STEPS * ms / samples),
            **(bench.rate(operations, ms) if operations else {}),
            **({"syncs": count_syncs(bench.device, step)} if syncs else {}),
        }

    return Row("step", f"{name}, {clip.spec.num_frames} frames", measure)


def _kinds(name: str, bench: Bench, step: fs.Step) -> Row:
    return Row("kernels", name, partial(by_kind, bench.device, step))


def _pipeline(bench: Bench, clip: Clip) -> Values:
    """Two steps of `MochiPipeline` by the clock, after two that warm up: its waits count."""
    steps = 2
    vae = fs.random_vae(bench.device, DTYPE, **bench.sizes.vae)
    pipeline = fs.stock_pipeline(clip.transformer, vae)
    spec = fs.clip_spec(clip.spec.width, clip.spec.height, clip.spec.num_frames, steps)
    run = partial(fs.run_pipeline, pipeline, spec, clip.prompt, clip.negative)
    first: list[float] = []
    peak = peak_bytes(bench.device, lambda: first.append(first_ms(bench.device, run)))
    ms = first_ms(bench.device, run) / steps
    figures = {"s": seconds(ms), "first_s": seconds(first[0] / steps), "peak_gb": gigabytes(peak)}
    video = {"s_per_sample": seconds(ms), "video_s": seconds(STEPS * ms)}
    return figures | video | bench.rate(clip.stock_operations(), ms)


def _change_error(clip: Clip, step: fs.Step, reference: fs.Step) -> Values:
    """Relative error of what one step adds to the latents."""
    before = clip.sample.latents
    (got,) = _latents(step)
    (wanted,) = _latents(reference)
    return {"error": relative_error(got - before, wanted - before)}


def _latents(step: fs.Step) -> list[Tensor]:
    latents: Any = step()
    return list(latents)


def _start(bench: Bench) -> Rows:
    """All graphs, unless an earlier part has compiled them."""
    if bench.compiled_block.graphs == 0:
        yield Row("compiling", "all graphs, at the start", partial(_compiling_all, bench))


def _compiling_all(bench: Bench) -> Values:
    """Steps of small batches of two shapes, the large one first, after which the graphs should be all that there are;
    then the same steps again."""
    block = bench.compiled_block
    transformer = bench.transformer()
    pack_projections(transformer)

    def warm_up() -> None:
        for shape in reversed(bench.sizes.probes):
            for samples in probe_batches(transformer, shape, bench.sizes.text_tokens):
                denoise_step(transformer, samples, block)

    first = first_ms(bench.device, warm_up)
    if block.failure is not None:
        raise NotHereError(block.failure)
    block.settle()
    return {"graphs": block.graphs, "first_s": seconds(first), "next_s": seconds(first_ms(bench.device, warm_up))}


def _compiling(bench: Bench, step: fs.Step) -> Values:
    """A first step and the next; graphs: compiled for the first one."""
    block = bench.compiled_block
    graphs = block.graphs
    first = first_ms(bench.device, step)
    return {
        "graphs": block.graphs - graphs,
        "first_s": seconds(first),
        "next_s": seconds(first_ms(bench.device, step)),
    }


def _foretold(bench: Bench) -> Values:
    """As a sampler does when it starts; `deployments.sampler.memory_measure` needs pydantic."""
    from deployments.sampler.memory_measure import measure, memory_budget

    transformer = bench.transformer()
    shape = bench.spec(bench.sizes.long_frames).clip.latents
    start = time.perf_counter()
    profile = measure(transformer, bench.sizes.probes, bench.sizes.text_tokens)
    measuring_ms = (time.perf_counter() - start) * 1e3
    return {
        "needed_gb": gigabytes(profile.needed([SampleFootprint(shape)])),
        "budget_gb": gigabytes(memory_budget(bench.device)),
        "measuring_s": seconds(measuring_ms),
    }


def _taken(bench: Bench) -> Values:
    """The peak above the weights of making a sample with a prompt of full length and stepping once."""
    transformer = bench.transformer()
    sizes = bench.sizes
    before = torch.cuda.memory_allocated(bench.device) if bench.on_cuda else 0

    def make_and_step() -> None:
        _our_step(bench.clip(transformer, sizes.long_frames, sizes.text_tokens))()

    peak = peak_bytes(bench.device, make_and_step)
    if peak is None:
        raise NotHereError("needs CUDA")
    return {"needed_gb": gigabytes(peak - before)}
