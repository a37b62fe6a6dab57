"""What a replica on a GPU sets in its environment, and what it leaves to the operator."""

import pytest

from deployments.replica.cuda_environment import ALLOCATOR, set_cuda_environment

DEFAULTS = {"TORCH_CUDNN_SDPA_AVOID_RECOMPILE": "1"}


def test_what_is_not_set_gets_a_value() -> None:
    environ: dict[str, str] = {}
    set_cuda_environment(environ)
    assert environ == DEFAULTS | {"PYTORCH_ALLOC_CONF": ALLOCATOR}


@pytest.mark.parametrize(
    "given",
    [
        {"PYTORCH_ALLOC_CONF": "max_split_size_mb:512"},
        {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
        {"PYTORCH_ALLOC_CONF": "", "TORCH_CUDNN_SDPA_AVOID_RECOMPILE": "0"},
    ],
)
def test_what_the_operator_has_set_stays(given: dict[str, str]) -> None:
    environ = dict(given)
    set_cuda_environment(environ)
    assert environ == DEFAULTS | given
