"""Which device a replica takes."""

import pytest
import torch

from deployments.replica.host import assigned_gpus, choose_device, describe_device, set_threads
from tests.support.workers.fakes import captured


@pytest.mark.parametrize(
    ("assigned", "usable", "chosen"),
    [(["0"], True, "cuda:0"), (["3", "5"], True, "cuda:0"), (["0"], False, "cpu"), ([], True, "cpu")],
)
def test_a_gpu_must_be_assigned_and_usable(assigned: list[str], usable: bool, chosen: str) -> None:
    assert str(choose_device(assigned, usable)) == chosen


def test_outside_ray_no_gpu_is_assigned() -> None:
    assert assigned_gpus() == []


def test_an_unusable_gpu_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with captured(caplog):
        assert choose_device(["2"], cuda_usable=False).type == "cpu"
    assert "GPU 2 is assigned but CUDA is not usable" in caplog.text


def test_threads_are_set_and_described() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert describe_device(torch.device("cpu")) == "cpu (1 thread)"
        set_threads(2)
        assert describe_device(torch.device("cpu")) == "cpu (2 threads)"
    finally:
        torch.set_num_threads(before)
