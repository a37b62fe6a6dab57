"""The GPU benchmark as far as a CPU can run it: every part dry, without Ray; what it does when something fails."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import gpu
from benchmarks.common import full_size as fs
from benchmarks.common.machine import nvidia_smi
from benchmarks.gpu_parts.bench import FULL, TINY, Bench, NotHereError, Part, Row, Rows, Sizes, Values
from benchmarks.gpu_parts.engine import QUALITIES
from benchmarks.gpu_parts.measuring import by_kind, kind_of
from benchmarks.gpu_parts.results import Results, figures_table, heading, print_tables
from serve_app.config import load_settings
from tests.support import ROOT
from tests.support.waiting import PATIENCE_S

CPU = torch.device("cpu")
# What a dry run may leave out, and why.
REASONS = {"needs CUDA", "No module named 'sageattention'"}
# Runs a script as if Ray were not installed, whoever looks for it.
WITHOUT_RAY = """
import runpy, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "ray" else self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        find = getattr(self.finder, "find_distributions", lambda context: ())
        return () if context.name == "ray" else find(context)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(*arguments: str) -> str:
    """What the benchmark prints where Ray is not installed."""
    command = [sys.executable, "-c", WITHOUT_RAY, "benchmarks/gpu.py", *arguments]
    # Two threads that wait for each other on busy cores take several times as long as one.
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_reports_every_part(tmp_path: Path) -> None:
    out = tmp_path / "results" / "dry.jsonl"
    printed = script("--dry", "--out", str(out))
    lines: list[dict[str, Any]] = [json.loads(line) for line in out.read_text().splitlines()]
    assert printed.startswith(out.read_text()), "a line is printed as it is written"
    assert lines[0]["dry"] and lines[0]["machine"]["device"] == "cpu" and lines[0]["machine"]["ray"] is None
    assert [line for line in lines if "failed" in line] == []
    assert {line["skipped"] for line in lines if "skipped" in line} <= REASONS
    assert [line["part"] for line in lines if "took_s" in line] == [part.name for part in gpu.PARTS]
    told = {line["part"] for line in lines[1:] if "table" in line or "skipped" in line}
    assert told == {part.name for part in gpu.PARTS}
    titles = {line["table"] for line in lines if "table" in line} | {"parts", "device and versions"}
    assert titles <= {line.strip() for line in printed.splitlines()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_stops() -> None:
    assert script() == gpu.NO_GPU + "\n"


def test_parts_are_chosen_by_name() -> None:
    assert [part.name for part in gpu.chosen("block,products")] == ["products", "block"]
    with pytest.raises(argparse.ArgumentTypeError, match="no part stairs; choose from device, products"):
        gpu.chosen("block,stairs")


def test_qualities_are_those_of_the_profiles() -> None:
    model = load_settings(str(ROOT / "configs" / "mochi-1-one-gpu.yaml"), {}).model
    assert {name: (model.steps_of(name), model.rules_of(name)) for name in model.offered} == QUALITIES


def run(*parts: Part, seconds: float = 60) -> list[dict[str, Any]]:
    results = Results()
    gpu.run_parts(parts, Bench(CPU, TINY), results, deadline=time.perf_counter() + seconds)
    return results.lines


def fails() -> Values:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand what to do")


def lacks() -> Values:
    raise NotHereError("needs CUDA")


def good_and_bad(bench: Bench) -> Rows:
    yield Row("step", "first", fails)
    yield Row("step", "second", lacks)
    yield Row("step", "third", lambda: {"s": 1.5})
    raise ValueError("no more rows")


def test_what_one_row_raises_costs_the_others_nothing() -> None:
    first, second, third, end, other, _ = run(Part("bad", 1, good_and_bad), Part("other", 1, lambda _: good_row()))
    assert first["failed"].startswith("RuntimeError: CUDA error") and "fails" in first["where"]
    assert second["skipped"] == "needs CUDA"
    assert (third["part"], third["table"], third["name"], third["s"]) == ("bad", "step", "third", 1.5)
    assert end["failed"] == "ValueError: no more rows" and "took_s" in end
    assert other["syncs"] == 0


def good_row() -> Rows:
    yield Row("step", "good", lambda: {"syncs": 0})


def test_a_part_that_may_take_too_long_is_not_begun() -> None:
    late, _, done = run(Part("long", 90, good_and_bad), Part("short", 30, lambda _: good_row()))
    assert late["skipped"] == "60 s are left, it may take 90"
    assert done["part"] == "short" and "skipped" not in done


def test_numbers_that_json_lacks_become_words(capsys: pytest.CaptureFixture[str]) -> None:
    Results().add(part="block", error=float("nan"), ms=float("inf"), top=[["gemm", 1.0]])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["error"] == "nan"


def test_tables_show_what_was_measured_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(Part("bad", 1, good_and_bad), Part("other", 1, lambda _: good_row()))
    capsys.readouterr()
    print_tables(Console(width=120), lines)
    printed = " ".join(capsys.readouterr().out.split())
    assert "first (failed: RuntimeError: CUDA error: an illegal memory access was encountered)" in printed
    assert "and what to do" not in printed
    table = figures_table("step", [line for line in lines if "table" in line])
    assert [column.header for column in table.columns] == ["", "s", "syncs"]
    assert heading("peak_gb") == "peak GB"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", "attention"),
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_TNT", "product"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("triton_red_fused__to_copy_add_cat_mul_pow_0", "fused"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "copy"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>", "elementwise"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_a_product_is_found_among_the_kernels() -> None:
    left = torch.ones(64, 64)
    found = by_kind(CPU, lambda: left @ left)
    assert found["product_ms"] >= 0 and any(name == "aten::mm" for name, _, _ in found["top"])


@pytest.mark.parametrize("sizes", [FULL, TINY])
def test_the_sizes_are_the_models(sizes: Sizes) -> None:
    config = fs.meta_transformer(**sizes.transformer).config
    assert (config.num_attention_heads, config.attention_head_dim) == (sizes.heads, sizes.head_dim)
    assert (config.pooled_projection_dim, config.max_sequence_length) == (sizes.caption, sizes.text_tokens)
    assert all(length <= sizes.text_tokens for length in (*sizes.lengths, *sizes.other_lengths))


def test_a_machine_without_the_drivers_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi("driver_version") is None
