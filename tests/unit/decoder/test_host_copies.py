"""Tensors on their way to the CPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from deployments.decoder.host_copies import host_copies


def test_one_of_the_cpu_comes_at_once_and_as_it_is() -> None:
    made: list[Tensor] = []

    def tensors() -> Iterator[Tensor]:
        for value in range(3):
            made.append(torch.full((2,), value))
            yield made[-1]

    for count, copy in enumerate(host_copies(tensors()), 1):
        assert len(made) == count
        assert copy is made[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_those_of_a_gpu_arrive_whole_and_in_order() -> None:
    tensors = (torch.full((1 << 20,), value, device="cuda") for value in range(5))
    copies = list(host_copies(tensors))
    assert [copy.device.type for copy in copies] == ["cpu"] * 5
    assert [(int(copy.min()), int(copy.max())) for copy in copies] == [(value, value) for value in range(5)]
