"""Which device a replica takes."""

import pytest
import torch

from deployments.errors import PermanentError
from deployments.replica.device_check import Installation
from deployments.replica.host import assigned_gpus, choose_device, describe_device, limit_memory, set_threads
from serve_app.local.server import error_line
from tests.support.workers.fakes import captured

BUILD = Installation("2.11.0+cu130", "13.0", "550.54.14")


def choose(assigned: list[str], problem: str | None = None, cpu_fallback: bool = False) -> str:
    return str(choose_device(assigned, cpu_fallback, lambda device: problem, lambda: BUILD))


@pytest.mark.parametrize(("assigned", "chosen"), [(["0"], "cuda:0"), (["3", "5"], "cuda:0"), ([], "cpu")])
def test_a_gpu_is_used_if_it_is_assigned(assigned: list[str], chosen: str) -> None:
    assert choose(assigned) == chosen


def test_a_cpu_is_not_looked_at() -> None:
    assert choose([], "never asked") == "cpu"


def test_a_gpu_that_does_not_work_stops_the_start_with_one_line() -> None:
    with pytest.raises(PermanentError) as caught:
        choose(["2"], "The NVIDIA driver on your system is too old (found version 12040).")
    text = str(caught.value)
    assert caught.value.code == "gpu_unusable" and "\n" not in text
    for part in (
        "GPU 2 is assigned",
        "driver on your system is too old",
        "580 or newer",
        "has 550.54.14",
        "cpu_fallback",
    ):
        assert part in text
    assert error_line(f"Traceback:\n  File x\n{type(caught.value).__module__}.PermanentError: {text}\n").endswith(text)


def test_an_explicit_setting_allows_the_cpu_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with captured(caplog):
        assert choose(["2"], "no driver", cpu_fallback=True) == "cpu"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "GPU 2 is assigned" in record.getMessage()


def test_outside_ray_no_gpu_is_assigned() -> None:
    assert assigned_gpus() == []


def test_the_cpu_has_no_share_of_memory_to_keep_to() -> None:
    limit_memory(torch.device("cpu"), 0.5)


def test_threads_are_set_and_described() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert describe_device(torch.device("cpu")) == "cpu (1 thread)"
        set_threads(2)
        assert describe_device(torch.device("cpu")) == "cpu (2 threads)"
    finally:
        torch.set_num_threads(before)
