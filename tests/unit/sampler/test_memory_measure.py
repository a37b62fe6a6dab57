"""Measuring the included model's memory on the CPU, and keeping the result.

What is measured is a process's own, as a sampler's is: threads that other tests left behind would take and free memory
beside it.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.clip import GUIDED_ROWS, LatentShape, latent_tokens
from deployments.messages import Stage
from deployments.mochi.block import run_block
from deployments.mochi.probe import probe_sample
from deployments.mochi.weights.loading import load_transformer
from deployments.replica.host_memory import total_bytes
from deployments.sampler.memory_measure import (
    ATTENTION_TENSORS,
    guided_step_bytes,
    measure,
    memory_budget,
    memory_profile,
    probe_shapes,
    share_budget,
)
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint
from deployments.sampler.peak_memory import high_water, process_peak
from deployments.settings import ModelSettings
from deployments.storage.models.store import CACHE_VARIABLE
from serve_app.config import load_settings
from tests.support import ROOT
from tests.support.workers.fakes import SHAPES, captured, worker_settings

CPU = torch.device("cpu")
MODEL = worker_settings(Stage.SAMPLING).model
SMALL: LatentShape = (12, 11, 8, 8)
MIDDLE: LatentShape = (12, 5, 16, 16)
LARGE: LatentShape = (12, 11, 16, 16)


@pytest.fixture(scope="module")
def transformer() -> Any:
    return load_transformer(SHAPES, "float32", CPU)


@pytest.fixture(scope="module")
def own_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module")
def measured(own_process: ProcessPoolExecutor) -> MemoryProfile:
    return own_process.submit(measure_included).result()


def measure_included() -> MemoryProfile:
    transformer = load_transformer(SHAPES, "float32", CPU)
    return measure(transformer, (SMALL, LARGE), MODEL.max_sequence_length)


def steps_bytes(*shapes: LatentShape) -> list[int]:
    """What a step of each shape takes."""
    transformer = load_transformer(SHAPES, "float32", CPU)
    return [guided_step_bytes(transformer, shape, MODEL.max_sequence_length) for shape in shapes]


def test_a_shape_between_costs_what_is_foretold(own_process: ProcessPoolExecutor, measured: MemoryProfile) -> None:
    (wanted,) = own_process.submit(steps_bytes, MIDDLE).result()
    foretold = GUIDED_ROWS * (latent_tokens(MIDDLE) * measured.step_token_bytes + measured.step_row_bytes)
    assert wanted / 2 < foretold < 2 * wanted


def test_a_larger_shape_costs_more(own_process: ProcessPoolExecutor) -> None:
    small, middle, large = own_process.submit(steps_bytes, SMALL, MIDDLE, LARGE).result()
    assert 0 < small < middle < large


def test_a_token_costs_what_torch_asks_for_or_more(measured: MemoryProfile) -> None:
    """8,208 bytes by torch's own count of its allocations; malloc and other libraries add to it."""
    assert 8208 * 0.9 < measured.step_token_bytes < 8208 * 3


def test_the_threads_are_as_before(transformer: Any) -> None:
    threads = torch.get_num_threads()
    guided_step_bytes(transformer, SMALL, MODEL.max_sequence_length)
    assert torch.get_num_threads() == threads


def test_what_is_held_is_counted_exactly(transformer: Any, measured: MemoryProfile) -> None:
    sample = probe_sample(transformer, SMALL, MODEL.max_sequence_length)
    tokens = latent_tokens(SMALL)
    assert measured.held_token_bytes * tokens == 2 * sample.latents.nbytes
    assert measured.table_token_bytes * tokens == sample.rope.nbytes
    assert measured.held_row_bytes == sample.prompt.caption.nbytes


def test_the_models_largest_video_fits_this_machine(measured: MemoryProfile) -> None:
    budget = memory_budget(CPU)
    assert 0 < budget < total_bytes()
    assert measured.fits([], SampleFootprint((12, 11, 16, 16)), budget)


def test_a_share_of_a_gpu_is_the_same_whoever_has_loaded_before() -> None:
    """The sampler of configs/mochi-1-one-gpu.yaml: four of the largest videos fit into what it may take.

    A compiled step of one took 26.21 GB with 20.06 of weights (benchmarks/results/gpu_h100.jsonl).
    """
    one_gpu = load_settings(str(ROOT / "configs" / "mochi-1-one-gpu.yaml"), environ={})
    fraction = one_gpu.sampler.memory_fraction
    assert fraction is not None
    budget = share_budget(total=85_500_000_000, weights=20_060_000_000, fraction=fraction)
    assert 4 * 6_150_000_000 < budget < 0.55 * 85_500_000_000 - 20_060_000_000
    assert share_budget(total=85_500_000_000, weights=60_000_000_000, fraction=fraction) == 0


def test_the_stages_of_one_gpu_leave_each_other_their_memory() -> None:
    one_gpu = load_settings(str(ROOT / "configs" / "mochi-1-one-gpu.yaml"), environ={})
    # GB without the context, as measured: benchmarks/results/gpu_h100.jsonl and gpu_h100_2.jsonl.
    needed = [29.1, 10.0, 11.8]
    shares = [(stage.memory_fraction or 0) * 85.5 for stage in (one_gpu.sampler, one_gpu.encoder, one_gpu.decoder)]
    assert all(share > need for share, need in zip(shares, needed, strict=True))
    assert sum(shares) + len(shares) * 1.0 < 85.5
    # The decoder's figure is of 848x480; larger pictures would take more.
    assert (one_gpu.model.max_picture_pixels or 0) < 1.01 * 848 * 480


def model(**changes: Any) -> ModelSettings:
    return MODEL.model_copy(update=changes)


def test_probes_are_small_and_four_times_apart() -> None:
    assert probe_shapes(MODEL) == ((12, 64, 4, 4), (12, 256, 4, 4))


def test_probes_of_the_full_size_are_far_below_its_largest() -> None:
    full = load_settings(str(ROOT / "configs" / "mochi-1-preview.yaml"), environ={}).model
    small, large = probe_shapes(full)
    assert (latent_tokens(small), latent_tokens(large)) == (1024, 4096)


def test_a_model_of_one_large_size_is_probed_small() -> None:
    width, height = ({"default": n, "minimum": n, "maximum": n} for n in (848, 480))
    pinned = ModelSettings.model_validate(
        MODEL.model_dump() | {"width": width, "height": height, "max_pixels": 10**9, "max_sequence_length": 256}
    )
    assert [latent_tokens(shape) for shape in probe_shapes(pinned)] == [1024, 4096]


class CountedMeasure:
    """In place of measuring; profile n is of the n-th measurement."""

    def __init__(self) -> None:
        self.calls: list[Sequence[LatentShape]] = []

    def __call__(self, transformer: Any, shapes: Sequence[LatentShape], text_tokens: int) -> MemoryProfile:
        self.calls.append(shapes)
        return MemoryProfile(len(self.calls), 0, 0, 0, 0)


def test_a_profile_is_measured_once(transformer: Any, tmp_path: Path) -> None:
    counted = CountedMeasure()
    first = memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted)
    assert memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted) == first
    assert counted.calls == [probe_shapes(MODEL)]
    (kept,) = (tmp_path / "memory").iterdir()
    assert json.loads(kept.read_text())["key"]["device"].startswith("cpu (")


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"max_sequence_length": 15}])
def test_another_setting_is_measured_anew(change: dict[str, Any], transformer: Any, tmp_path: Path) -> None:
    counted = CountedMeasure()
    memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted)
    memory_profile(transformer, model(**change), "abc", tmp_path, measure=counted)
    assert len(counted.calls) == 2


def test_compiled_blocks_are_measured_by_themselves(transformer: Any, tmp_path: Path) -> None:
    counted = CountedMeasure()
    memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted)
    compiled = memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted, form="compiled")
    assert memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted, form="compiled") == compiled
    assert len(counted.calls) == 2


def test_rows_that_go_one_after_the_other_are_measured_by_themselves(transformer: Any, tmp_path: Path) -> None:
    counted = CountedMeasure()
    memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted)
    memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted, rows_at_once=1)
    assert len(counted.calls) == 2


@torch.no_grad()
def test_a_step_is_measured_with_the_blocks_that_samples_have(transformer: Any) -> None:
    threads, seen = torch.get_num_threads(), set()

    def block(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.add(torch.get_num_threads())
        return run_block(*arguments)

    assert guided_step_bytes(transformer, SMALL, MODEL.max_sequence_length, block) > 0
    assert seen == {threads}, "blocks that are compiled are so for this number of threads"


@pytest.fixture
def threads() -> Iterator[int]:
    """How many torch uses, as before after the test."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_another_model_or_number_of_threads_is_measured_anew(transformer: Any, tmp_path: Path, threads: int) -> None:
    counted = CountedMeasure()
    memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted)
    memory_profile(transformer, MODEL, "abd", tmp_path, measure=counted)
    torch.set_num_threads(threads + 1)
    memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted)
    assert len(counted.calls) == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"key": 1}', '{"key": KEY, "profile": {"step_token_bytes": 0}}', "\0"]
)
def test_a_damaged_profile_is_measured_anew_and_mended(
    text: str, transformer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted = CountedMeasure()
    memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted)
    (kept,) = (tmp_path / "memory").iterdir()
    kept.write_text(text.replace("KEY", json.dumps(json.loads(kept.read_text())["key"])))
    with captured(caplog):
        assert memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted).step_token_bytes == 2
    assert "damaged and measured anew" in caplog.text
    assert memory_profile(transformer, MODEL, "abc", tmp_path, measure=counted).step_token_bytes == 2
    assert len(counted.calls) == 2


def test_a_cache_that_cannot_be_written_is_no_obstacle(transformer: Any, tmp_path: Path) -> None:
    counted = CountedMeasure()
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert memory_profile(transformer, MODEL, "abc", blocked, measure=counted).step_token_bytes == 1


def test_the_models_cache_is_the_default(transformer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedMeasure()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    memory_profile(transformer, MODEL, "abc", measure=counted)
    assert len(list((tmp_path / "memory").iterdir())) == 1


def test_the_whole_way_with_a_real_measurement(transformer: Any, tmp_path: Path) -> None:
    profile = memory_profile(transformer, MODEL, "abc", tmp_path)
    assert memory_profile(transformer, MODEL, "abc", tmp_path) == profile
    assert profile.step_token_bytes >= ATTENTION_TENSORS * 128 * 4


def test_where_the_mark_cannot_be_reset_only_new_heights_count(tmp_path: Path) -> None:
    """As on systems without /proc: the floor of `fit_line` then stands in for a measurement."""
    absent = tmp_path / "proc"
    high = torch.ones(20_000_000)
    del high
    assert process_peak(lambda: torch.ones(1000), absent) <= 4_000_000
    assert high_water(absent) > 50_000_000


def test_a_step_is_seen_even_in_memory_that_malloc_kept(own_process: ProcessPoolExecutor) -> None:
    assert own_process.submit(peak_in_kept_memory).result() > 12_000_000


def peak_in_kept_memory() -> int:
    def work() -> None:
        for _ in range(3):
            blocks = [torch.ones(250_000) for _ in range(16)]
            del blocks

    work()
    return process_peak(work)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_allocator_tells_exactly() -> None:
    gpu = torch.device("cuda:0")
    transformer = load_transformer(SHAPES, "bfloat16", gpu)
    profile = measure(transformer, (SMALL, LARGE), MODEL.max_sequence_length)
    assert profile == measure(transformer, (SMALL, LARGE), MODEL.max_sequence_length)
    foretold = GUIDED_ROWS * (latent_tokens(MIDDLE) * profile.step_token_bytes + profile.step_row_bytes)
    taken = guided_step_bytes(transformer, MIDDLE, MODEL.max_sequence_length)
    assert 0.9 * taken < foretold < 1.5 * taken
    assert 0 < memory_budget(gpu) < torch.cuda.mem_get_info(gpu)[1]
