"""What NVML says of a GPU, and when it takes no tasks. The library is a fake with the form of `pynvml`."""

import inspect
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.replica.gpu_state import (
    PROGRAM_XIDS,
    GpuFigures,
    GpuWatch,
    NoGpuWatch,
    Nvml,
    compute_processes,
    gpu_watch,
    open_nvml,
    watch_by_uuid,
    why_unfit,
)
from tests.support.workers.fake_nvml import LOST, RESET_REQUIRED, FakeGpu, FakeNvml
from tests.support.workers.fakes import captured

GB = 1_000_000_000


def watch(gpu: FakeGpu, own: int = 0) -> GpuWatch:
    return GpuWatch(FakeNvml(gpu), gpu, lambda: own)


def test_the_figures_of_a_gpu() -> None:
    gpu = FakeGpu(used=30 * GB, remapped=(0, 2, 1, 0), retirement_pending=0, events=deque([31]))
    assert watch(gpu, own=20 * GB).look() == GpuFigures(
        memory_total=80 * GB,
        memory_used=30 * GB,
        memory_own=20 * GB,
        utilization=40,
        power_w=300.5,
        temperature_c=55,
        uncorrected_ecc=0,
        remapped_rows=2,
        remap_pending=True,
        remap_failed=False,
        retirement_pending=False,
        xids=(31,),
    )


def test_what_a_gpu_does_not_support_is_not_known_and_speaks_against_nothing() -> None:
    bare = FakeGpu(utilization=None, milliwatts=None, temperature=None, uncorrected=None, remapped=None, events=None)
    figures = watch(bare).look()
    assert figures == GpuFigures(memory_total=80 * GB, memory_used=GB)
    assert why_unfit(figures) is None


HEALTHY = GpuFigures(memory_total=80 * GB, memory_used=60 * GB, memory_own=55 * GB, uncorrected_ecc=0)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (replace(HEALTHY, xids=(31, 79)), ["Xid 79 (fallen off the bus)", "reset it"]),
        (replace(HEALTHY, xids=(48, 13)), ["Xid 48 (double-bit ECC error)"]),
        (replace(HEALTHY, xids=(999,)), ["Xid 999 for the GPU"]),
        (replace(HEALTHY, uncorrected_ecc=1), ["1 uncorrected memory error since"]),
        (replace(HEALTHY, uncorrected_ecc=4), ["4 uncorrected memory errors since"]),
        (replace(HEALTHY, remap_failed=True), ["no spare rows", "replace it"]),
        (replace(HEALTHY, retirement_pending=True), ["damaged memory page"]),
        (replace(HEALTHY, lost="GPU is lost"), ["lost the GPU (GPU is lost)"]),
        (replace(HEALTHY, memory_used=79 * GB, memory_own=GB), ["other processes hold 98% of the GPU's memory"]),
    ],
)
def test_why_a_gpu_takes_no_tasks(figures: GpuFigures, words: list[str]) -> None:
    reason = why_unfit(figures)
    assert reason is not None and all(word in reason for word in words), reason


@pytest.mark.parametrize(
    "figures",
    [
        HEALTHY,
        replace(HEALTHY, xids=tuple(sorted(PROGRAM_XIDS))),
        replace(HEALTHY, remap_pending=True, remapped_rows=3),
        replace(HEALTHY, memory_used=79 * GB, memory_own=70 * GB),
        GpuFigures(),
    ],
)
def test_what_speaks_against_nothing(figures: GpuFigures) -> None:
    """Faults of a program, rows that were remapped, memory that is this replica's own."""
    assert why_unfit(figures) is None


@given(st.integers(1, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_the_part_of_others_is_a_part(total: int, used: int, own: int) -> None:
    figures = GpuFigures(memory_total=total, memory_used=min(used, total), memory_own=own)
    assert 0 <= figures.used_by_others <= 1
    assert figures.used_by_others * total + own >= min(used, total) * (1 - 1e-9)


def test_an_xid_counts_for_as_long_as_the_process_lives() -> None:
    watched = watch(gpu := FakeGpu())
    assert watched.problem() is None
    assert gpu.events is not None
    gpu.events += [79, 45]
    assert watched.look().xids == (79, 45)
    for _ in range(2):
        assert "Xid 79" in str(watched.problem())


@pytest.mark.parametrize("error", [LOST, RESET_REQUIRED])
def test_a_gpu_that_the_driver_cannot_reach_takes_no_tasks_until_it_can(error: int) -> None:
    watched = watch(gpu := FakeGpu())
    gpu.error = error
    assert "the driver has lost the GPU (GPU" in str(watched.problem())
    gpu.error = None
    assert watched.problem() is None


def test_the_memory_of_a_mig_instance_is_its_own_and_its_faults_are_the_gpus() -> None:
    whole = FakeGpu("GPU-9", uncorrected=2)
    part = FakeGpu("MIG-5", total=10 * GB, used=GB, part_of=whole, uncorrected=None, temperature=None)
    found = watch_by_uuid("5", lambda: 0, lambda: FakeNvml(whole, part))
    figures = found.look()
    assert (figures.memory_total, figures.uncorrected_ecc, figures.temperature_c) == (10 * GB, 2, 55)
    assert "2 uncorrected" in str(found.problem())


def missing() -> Nvml:
    raise ImportError("No module named 'pynvml'")


def test_without_nvml_there_is_no_opinion_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with captured(caplog):
        found = watch_by_uuid("1234", lambda: 0, missing)
        assert [found.problem() for _ in range(3)] == [None] * 3
        assert found.look() == GpuFigures()
    (record,) = caplog.records
    assert "NVML tells nothing of GPU 1234" in record.getMessage() and "pynvml" in record.getMessage()


def test_a_gpu_that_nvml_does_not_know_is_not_watched() -> None:
    assert isinstance(watch_by_uuid("other", lambda: 0, lambda: FakeNvml(FakeGpu())), NoGpuWatch)


def test_a_cpu_is_not_watched(caplog: pytest.LogCaptureFixture) -> None:
    with captured(caplog):
        assert isinstance(gpu_watch(torch.device("cpu"), missing), NoGpuWatch)
    assert caplog.records == []


def test_the_fake_has_the_form_of_the_library() -> None:
    """Here NVML itself is missing, and the library says so by the class of errors that is caught."""
    pynvml: Any = pytest.importorskip("pynvml")
    names = [name for name in dir(FakeNvml) if not name.startswith("_")]
    for name in names:
        real, fake = getattr(pynvml, name), getattr(FakeNvml, name)
        if isinstance(fake, int):
            assert real == fake, name
        elif inspect.isfunction(fake):
            wanted = list(inspect.signature(fake).parameters)[1:]
            assert list(inspect.signature(inspect.unwrap(real)).parameters)[: len(wanted)] == wanted, name
    assert issubclass(pynvml.NVMLError, Exception) and pynvml.NVMLError(LOST).value == LOST
    if not torch.cuda.is_available():
        with pytest.raises(pynvml.NVMLError):
            open_nvml()


def test_the_processes_of_a_gpu_as_far_as_the_driver_tells() -> None:
    gpu = FakeGpu(processes={7: 3_000_000_000, 8: None})
    assert compute_processes("1234", lambda: FakeNvml(gpu)) == {7: 3_000_000_000, 8: None}
    assert compute_processes("1234", lambda: FakeNvml(FakeGpu(processes=None))) == {}
    assert compute_processes("9999", lambda: FakeNvml(gpu)) == {}
