"""What of the benchmarks needs no run: formulas, the building of random models, tables."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, func, select
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import decode, dispatch, plot_step, quality, registry, sampler_latency, step_batching, tiers
from benchmarks.common import flops
from benchmarks.common import full_size as fs
from benchmarks.common.machine import describe_machine, installed_version, publish
from benchmarks.gpu_parts.ceilings import product_shapes
from deployments.clip import ClipShape
from deployments.mochi.denoise import Sample, predict_velocity, rope_tables
from deployments.mochi.streaming_decode import StreamingDecoder
from deployments.step_rules import StepRules, step_plan
from serve_app.config import load_settings
from serve_app.database.jobs import moves as moves_sql
from serve_app.database.jobs.listing import list_jobs
from serve_app.database.schema import job_moves, jobs
from serve_app.jobs import JobFilter, JobState
from tests.support import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")

CPU, META = torch.device("cpu"), torch.device("meta")
MOCHI_1: dict[str, Any] = {
    "patch_size": 2,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 48,
    "pooled_projection_dim": 1536,
    "in_channels": 12,
    "out_channels": None,
    "text_embed_dim": 4096,
    "time_embed_dim": 256,
}
SPEC = fs.clip_spec(96, 64, 7, steps=4, seed=3)
TOKENS = 8


@pytest.fixture(scope="module")
def transformer() -> Any:
    return fs.random_transformer(CPU, torch.float32, **fs.TINY)


def prompts() -> tuple[fs.Prompt, fs.Prompt]:
    return fs.random_prompt(32, 5, TOKENS, seed=1), fs.random_prompt(32, 1, TOKENS, seed=2)


def first_sample(transformer: Any) -> Sample:
    with torch.no_grad():
        return fs.our_sample(transformer, SPEC, *prompts())


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("layers", [1, 3])
def test_stock_step_formula_equals_the_counter(layers: int) -> None:
    """By the MATH backend, whose attention is two products that the counter sees."""
    transformer = fs.random_transformer(CPU, torch.float32, **fs.TINY | {"num_layers": layers})
    step = fs.stock_step(transformer, first_sample(transformer), *prompts())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    formula = flops.stock_step_flops(transformer.config, SPEC.clip.latents, [1, 5], TOKENS)
    assert counter.get_total_flops() == formula.total


@pytest.mark.parametrize("lengths", [[5, 1], [3], [8, 8, 2]])
def test_our_forward_formula_equals_the_counter(lengths: list[int]) -> None:
    transformer = fs.meta_transformer(**fs.TINY)
    shape, longest = SPEC.clip.latents, max(lengths)
    prompt = first_sample(fs.random_transformer(CPU, torch.float32, **fs.TINY)).prompt
    text = type(prompt)(prompt.caption.to(META), prompt.pooled.to(META), 0)
    texts = [type(prompt)(text.caption, text.pooled, length) for length in lengths]
    rope = rope_tables(transformer, shape)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        latents = torch.empty(len(lengths), *shape, device=META)
        predict_velocity(transformer, latents, torch.empty(len(lengths), device=META), texts, rope)
    assert counter.get_total_flops() == flops.forward_flops(transformer.config, shape, lengths, longest).total


@pytest.mark.parametrize(
    ("frames", "tokens", "linear", "attention"), [(163, 44520, 0.97, 2.35), (85, 23850, 0.52, 0.68)]
)
def test_operations_of_mochi_1(frames: int, tokens: int, linear: float, attention: float) -> None:
    """PFLOP of a guided step at 848x480, as worked out by hand from the architecture."""
    shape = fs.clip_spec(848, 480, frames, 64).clip.latents
    assert flops.video_tokens(MOCHI_1, shape) == tokens
    step = flops.forward_flops(MOCHI_1, shape, [100, 100], 100)
    assert step.linear / 1e15 == pytest.approx(linear, rel=0.01)
    assert step.attention / 1e15 == pytest.approx(attention, rel=0.01)


def test_the_default_architecture_is_mochi_1() -> None:
    transformer = fs.meta_transformer()
    assert {key: transformer.config[key] for key in MOCHI_1} == MOCHI_1
    assert sum(p.numel() for p in transformer.parameters()) == 10_027_677_744


def test_decoder_operations_are_counted_without_memory() -> None:
    latents = torch.empty(1, *fs.clip_spec(848, 480, 85, 64).clip.latents, device=META)
    assert flops.counted_flops(fs.meta_vae().decoder, latents) / 1e15 == pytest.approx(0.58, rel=0.01)


def test_random_weights_come_from_the_seed(transformer: Any) -> None:
    again = fs.random_transformer(CPU, torch.float32, **fs.TINY)
    other = fs.random_transformer(CPU, torch.float32, seed=1, **fs.TINY)
    weights, other_weights = transformer.state_dict(), other.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert not torch.equal(weights["proj_out.weight"], other_weights["proj_out.weight"])
    assert not transformer.training
    assert not any(p.requires_grad for p in transformer.parameters())


def test_stock_step_and_ours_agree(transformer: Any) -> None:
    sample = first_sample(transformer)
    stock: Any = fs.stock_step(transformer, sample, *prompts())()
    ours: Any = fs.our_step(transformer, [sample])()
    assert relative_error(ours[0], stock[0]) <= 1e-5
    assert relative_error(ours[0], sample.latents) > 1e-5


def test_stock_step_is_the_pipelines(transformer: Any) -> None:
    """Four steps of the pipeline, from the sample's own noise, are four of the stand-in's, each on the last result."""
    pipeline = fs.stock_pipeline(transformer, fs.random_vae(CPU, torch.float32, **fs.TINY_VAE))
    wanted = fs.run_pipeline(pipeline, SPEC, *prompts())
    sample = first_sample(transformer)
    for n in range(sample.num_steps):
        stepped: Any = fs.stock_step(transformer, Sample(**_fields(sample) | {"step": n}), *prompts())()
        sample = Sample(**_fields(sample) | {"latents": stepped[0]})
    assert relative_error(sample.latents, wanted) <= 1e-6


def _fields(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in Sample.__slots__}


def test_bf16_stays_finite() -> None:
    transformer = fs.random_transformer(CPU, torch.bfloat16, **fs.TINY)
    latents: Any = fs.our_step(transformer, [first_sample(transformer)])()
    assert torch.isfinite(latents[0]).all()
    assert 0.5 < float(latents[0].std()) < 2


def test_constants_of_a_request_are_what_the_formula_says(transformer: Any) -> None:
    constants = fs.step_constants(transformer, SPEC, *prompts())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        constants()
    config, shape = transformer.config, SPEC.clip.latents
    with_constants = flops.stock_step_flops(config, shape, [1, 5], TOKENS).total
    without = flops.forward_flops(config, shape, [1, 5], TOKENS).total
    time_embedding = 2 * 2 * (fs.TINY["time_embed_dim"] * 32 + 32 * 32)
    assert counter.get_total_flops() == with_constants - without + time_embedding


def test_random_vae_decodes_in_the_stock_way_and_in_ours() -> None:
    vae = fs.random_vae(CPU, torch.float32, **fs.TINY_VAE)
    latents = torch.randn(12, 2, 4, 4)
    with torch.no_grad():
        stock = vae.decode(latents[None], return_dict=False)[0][0]
    pieces = list(StreamingDecoder(vae).decode(latents))
    assert relative_error(torch.cat(pieces, dim=1), stock) <= 1e-5


def test_shapes_of_the_linear_layers() -> None:
    assert product_shapes(89040, 3072)["feed-forward out"] == (89040, 8192, 3072)


def test_turns_and_summary() -> None:
    order: list[tuple[int, int]] = []
    runs = {key: partial(lambda key, turn: order.append((turn, key)), key) for key in (0, 1, 8)}
    seconds = step_batching.take_turns(runs, rounds=3)
    assert [key for turn, key in order if turn == 1] == [1, 8, 0]
    assert {key: len(taken) for key, taken in seconds.items()} == {0: 3, 1: 3, 8: 3}
    section = step_batching.summarise({0: [2.0, 2.0, 9.0], 8: [4.0, 4.0, 4.0]}, steps=20)
    assert section["stock"]["clips_per_s"] == 0.5
    point = section["curve"][0]
    assert (point["samples"], point["clips_per_s"], point["ratio"], point["spread"]) == (8, 2.0, 4.0, 0.0)
    assert step_batching.as_table(section).row_count == 2


@pytest.mark.slow
def test_step_batching_compares_the_same_videos() -> None:
    contenders = step_batching.Contenders()
    contenders.check(3)
    assert contenders.spec(0) != contenders.spec(1)


def test_gaps_lie_between_jobs_and_not_between_their_steps() -> None:
    begun, ended = [0.0, 2.0, 10.0, 12.0, 15.0, 17.0], [1.0, 3.0, 11.0, 13.0, 16.0, 18.0]
    assert sampler_latency.gaps(begun, ended, steps=2) == [7.0, 2.0]
    with pytest.raises(SystemExit, match="whole jobs of 4 steps"):
        sampler_latency.gaps(begun, ended, steps=4)


def test_moments_cover_a_step_evenly() -> None:
    drawn = sampler_latency.moments(10, seed=0)
    assert sorted(int(moment * 10) for moment in drawn) == list(range(10)) and drawn != sorted(drawn)
    assert drawn == sampler_latency.moments(10, seed=0) != sampler_latency.moments(10, seed=1)


def test_latencies_against_their_bars() -> None:
    stop = sampler_latency.against(0.35, [0.1, 0.2, 0.4], judged=0.4)
    assert stop == {"median_ms": 200.0, "max_ms": 400.0, "bar_ms": 350.0, "holds": False}
    gap = sampler_latency.against(0.35, [0.1, 0.2, 0.4], judged=0.2)
    checkpoints = sampler_latency.cost([1.02, 2.0, 3.03], [1.0, 1.0, 3.0])
    assert (checkpoints["median_ratio"], checkpoints["holds"]) == (1.02, True)
    assert not sampler_latency.cost([1.04], [1.0])["holds"]
    slot = {"step_ms": 300.0, "stop": stop, "yield": stop}
    sections = {"slot_free": slot, "between_jobs": gap, "checkpoints": checkpoints}
    assert sampler_latency.as_table(sections).row_count == 4


def _moves(*rows: tuple[str, float, str]) -> list[dispatch.Move]:
    return [dispatch.Move(n, job_id, at, state, "sampling", 1) for n, (job_id, at, state) in enumerate(rows, 1)]


def test_spans_are_stays_in_a_state() -> None:
    moves = _moves(("a", 1, "sampling"), ("b", 2, "sampling"), ("a", 3, "queued"), ("a", 5, "sampling"))
    moves += _moves(("a", 9, "queued"), ("c", 9.5, "sampling"), ("b", 10, "failed"))
    found = dispatch.spans(moves, "sampling")
    assert found == [dispatch.Span("a", 1, 3), dispatch.Span("b", 2, 10), dispatch.Span("a", 5, 9)]
    assert found[1].within(0, 4) == found[1].within(8, 20) == 2
    assert found[0].within(4, 8) == 0
    assert dispatch.at_same_time(found) == 2
    assert dispatch.at_same_time([dispatch.Span("a", 0, 1), dispatch.Span("b", 1, 2)]) == 1
    assert [tiers.taken(found, at) for at in (0, 1, 2.5, 3, 10)] == [0, 1, 2, 1, 0]


def test_list_schedule_and_the_least_steps() -> None:
    assert dispatch.list_schedule([3, 3, 2, 2, 5], machines=2) == 10
    assert dispatch.least_steps([3, 3, 2, 2, 5], machines=2) == 7.5
    assert dispatch.least_steps([1, 9], machines=2) == 9
    assert dispatch.list_schedule([4], machines=8) == 4


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 8))
def test_list_schedule_is_at_most_twice_the_least(lengths: list[int], machines: int) -> None:
    """Graham's bound: (2 - 1/m) of the optimum, which is at least the least."""
    least = dispatch.least_steps(lengths, machines)
    assert least <= dispatch.list_schedule(lengths, machines) <= 2 * least


def test_busy_share_counts_what_lies_before_the_last_begin() -> None:
    """Eight samplers, each with one job of 4 s until a ninth begins at 4 s; of the 4 s only 2 s were steps."""
    sampling = [dispatch.Span(f"{n}", 0, 4) for n in range(8)] + [dispatch.Span("8", 4, 6)]
    steps = dict.fromkeys([span.job_id for span in sampling], round(2 / dispatch.STEP_S))
    full = dispatch.busy_section(sampling, steps, begun=0)
    assert (full["while_s"], full["held"], full["denoising"]) == (4, 1, 0.5)
    assert full["holds"] and not full["holds_denoising"]
    assert dispatch.busy_section(sampling, steps, begun=-1)["held"] == 0.8


def test_replicas_are_known_by_what_they_log() -> None:
    ids = [f"video_{n:032x}" for n in range(3)]
    lines = [
        f"INFO 2026-11-28 00:37:02,472 sampler ootn4vkb 12 -- [{ids[0]}] sampling begins, attempt 1",
        f"INFO 2026-11-28 00:37:02,472 sampler 5kdx3uz6 13 -- [{ids[1]}] sampling begins, attempt 1",
        f"INFO 2026-11-28 00:37:02,472 decoder 4t78x66m 14 -- [{ids[0]}] decoding begins, attempt 1",
        f"INFO 2026-11-28 00:37:02,472 sampler 23ndhs8a 15 -- [{ids[2]}] sampling begins, attempt 1",
    ]
    assert dispatch.replicas_of("\n".join(lines), ids[:2]) == {12, 13}


def test_tables_of_the_dispatch() -> None:
    lengths = dispatch.draw_lengths(64, seed=0)
    assert lengths == dispatch.draw_lengths(64, seed=0) and {min(lengths), max(lengths)} <= set(range(10, 61))
    section = dispatch.makespan_section(84.0, 80.0, [8] * 16)
    assert (section["of_ideal"], section["bound_s"]) == (1.05, 16 * dispatch.STEP_S)
    once = {"requests": 8, "at_the_same_time": 8, "replicas": 8, "all_running_after_s": 0.2, "holds": True}
    busy = {"while_s": 60.0, "held": 0.99, "denoising": 0.96, "bar": 0.97, "holds": True, "holds_denoising": False}
    mixed = section | {"bar": 1.05, "holds": True, "busy": busy}
    dealt = section | {"without_overhead_s": 85.0}
    assert dispatch.as_table({"at_once": once, "mixed": mixed, "round_robin": dealt}).row_count == 8


def test_interactive_jobs_arrive_while_long_ones_wait() -> None:
    todo = tiers.plan(100, seed=0)
    assert todo == tiers.plan(100, seed=0) != tiers.plan(100, seed=1)
    assert (len(todo.long), len(todo.arrivals)) == (60, 40)
    assert {tier for tier, _ in todo.long} == {"standard", "batch"}
    longest = sum(steps for _, steps in todo.long) * tiers.STEP_S / tiers.SLOTS
    assert tiers.FIRST_ARRIVAL_S <= todo.arrivals[0] <= todo.arrivals[-1] < longest
    assert list(todo.arrivals) == sorted(todo.arrivals)


def test_spread_of_waits() -> None:
    assert tiers.spread([0.1 * n for n in range(1, 21)]) == {"median_s": 1.05, "p95_s": 1.9, "max_s": 2.0}
    assert tiers.spread([0.5]) == {"median_s": 0.5, "p95_s": 0.5, "max_s": 0.5}


def test_a_filled_database_holds_ended_jobs_with_their_moves(database_url: str) -> None:
    registry.fill(database_url, 2 * registry.FEW)
    engine = create_engine(database_url)
    with engine.connect() as connection:
        counted = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
        states: dict[str, int] = dict(counted.tuples().all())
        moves = connection.execute(select(func.count()).select_from(job_moves)).scalar_one()
        page = list_jobs(connection, limit=100, after=None, order="desc", wanted=JobFilter(states=(JobState.FAILED,)))
        ids = connection.execute(select(func.count(func.distinct(jobs.c.id)))).scalar_one()
        last = page.jobs[-1]
        history = moves_sql.history(connection, last.id)
    engine.dispose()
    assert sum(states.values()) == ids == 2 * registry.FEW and set(states) == set(registry.SHARES)
    assert moves == sum(count * len(registry.HISTORIES[JobState(state)]) for state, count in states.items())
    assert [job.created_at for job in page.jobs] == sorted((job.created_at for job in page.jobs), reverse=True)
    assert last.created_at < history[-1].at and history[-1].state is JobState.FAILED


def test_registry_figures_against_their_bars() -> None:
    def measured(count: int) -> registry.Measured:
        return registry.Measured(10.0, [0.1] * count, {"first page": [0.002, 0.004, 0.003]})

    few, many = [measured(n) for n in (5000, 6000, 8000)], [measured(n) for n in (4500, 4500, 7600)]
    section = registry.summarise("sqlite", {1000: few, 1_000_000: many})
    assert (section["few"]["submits_per_s"], section["few"]["p99_ms"], section["few"]["holds"]) == (600, 100, True)
    assert (section["many"]["submits_per_s"], section["many"]["holds"]) == (450, True)
    assert (section["ratio"], section["ratio_holds"]) == (0.9, True)
    assert section["pages"]["first page"] == {"few_ms": 3.0, "many_ms": 3.0, "ratio": 1.0}
    assert registry.submits_table({"sqlite": section}).row_count == 2
    assert registry.pages_table({"sqlite": section}).row_count == 1
    assert registry.shares_of(64, 3) == [22, 21, 21]


def test_a_folder_in_memory_is_refused() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("there is no file system in memory here")
    with pytest.raises(SystemExit, match="name a folder on a disk"):
        registry.file_system(memory)


def test_machine_is_plain_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = describe_machine(CPU)
    assert described["torch"] == torch.__version__.split("+")[0] or described["torch"] == torch.__version__
    assert installed_version("no-such-package") is None
    publish({"machine": described, "seconds": math.pi}, tmp_path / "results" / "x.json")
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "results" / "x.json").read_text())


def test_decoding_is_compared_before_it_is_timed() -> None:
    decoders = decode.contenders(against=ROOT)
    latents = decode.some_latents(ClipShape(32, 32, 7))
    checks = decode.compare(decoders, latents)
    assert set(checks) == set(decoders) and all(found["relative_error"] <= 1e-5 for found in checks.values())
    section = decode.measure(decoders, latents, rounds=1)
    assert section["base"] == decode.AGAINST and section["ratio"][decode.AGAINST] == 1
    assert set(section["ms"]) > set(decoders)
    assert [table.row_count for table in decode.tables(section, "32x32x7", rounds=1)] == [len(section["ms"]), 3]
    with pytest.raises(SystemExit, match="off the VAE's own"):
        decode.compare({"late": lambda latents: (piece + 1 for piece in decoders["ours"](latents))}, latents)


def test_structural_similarity() -> None:
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (2, 24, 20, 3), generator=generator, dtype=torch.uint8).numpy()
    assert quality.ssim(clip, clip) == pytest.approx(1.0)
    # By hand: of two even pictures only the first factor is not 1.
    grey, white = clip * 0 + 100, clip * 0 + 255
    c = (0.01 * 255) ** 2
    assert quality.ssim(grey, white) == pytest.approx((2 * 100 * 255 + c) / (100**2 + 255**2 + c), rel=1e-3)
    assert quality.ssim(clip, 255 - clip) < 0


def test_qualities_against_their_bars() -> None:
    model = load_settings(str(quality.PROFILE), {}).model
    right = {"colour": True, "direction": True}
    rows: list[quality.Row] = [
        {"clip": clip, "quality": name, "cpu_s": cpu_s * (1 + clip), "psnr_db": 30.0, "ssim": 0.9, **right}
        | {"shape": clip >= wrong}
        for clip in range(100)
        for name, cpu_s, wrong in (("exact", 1.0, 4), ("fast", 0.5, 5), ("draft", 0.25, 10))
    ]
    section = quality.summarise(rows, model)
    fast, draft = section["qualities"]["fast"], section["qualities"]["draft"]
    assert (fast["time"], draft["time"]) == (0.5, 0.25)
    assert fast["points_lost"] == {"colour": 0, "direction": 0, "shape": 1} and draft["points_lost"]["shape"] == 6
    assert all(bar["holds"] for bar in (section["bars"]["fast_time"], *section["bars"]["fast_points_lost"].values()))
    assert quality.as_table(section).row_count == 3
    slower = [row | {"cpu_s": row["cpu_s"] * (1.3 if row["quality"] == "fast" else 1)} for row in rows]
    assert not quality.summarise(slower, model)["bars"]["fast_time"]["holds"]


def test_a_plan_in_words() -> None:
    plan = step_plan(8, 3.0, StepRules(guidance_from=0.01, reuse_run=1))
    assert quality.written_plan(plan) == "1 (1) 2 (2) 2 (2) 2 (2)"


def test_the_parts_of_a_step_are_drawn_from_results(tmp_path: Path) -> None:
    results = [ROOT / "benchmarks" / "results" / name for name in ("gpu_h100_3.jsonl", "gpu_h100_5.jsonl")]
    lines = [json.loads(line) for path in results for line in path.read_text().splitlines()]
    found = plot_step.seconds_by_part(lines)
    assert list(found) == list(plot_step.STEPS.values())
    assert sum(found["exact (compiled)"].values()) == pytest.approx(5.12, abs=0.05)
    plot_step.draw(found, tmp_path / "step.svg")
    assert (tmp_path / "step.svg").read_text().lstrip().startswith("<?xml")
