"""Tensors of files, in the memory in which they are used."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deployments.errors import PermanentError
from deployments.mochi.weights.tensors import FileTensor, ReadOptions, read_tensors

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def written(path: Path, tensors: list[Tensor]) -> list[FileTensor]:
    """The tensors one behind the other, after some bytes that make them unaligned."""
    places, data = [], b"abc"
    for tensor in tensors:
        places.append(FileTensor(path, len(data), tensor.dtype, tuple(tensor.shape)))
        data += tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    path.write_bytes(data)
    return places


@given(
    shapes=st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=6),
    stored=st.sampled_from(DTYPES),
    wanted=st.sampled_from(DTYPES[:2]),
    chunk=st.integers(1, 9),
    threads=st.integers(1, 3),
)
def test_tensors_are_as_the_library_casts_them(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    stored: torch.dtype,
    wanted: torch.dtype,
    chunk: int,
    threads: int,
) -> None:
    """Of any shape, no elements included, in chunks of any length."""
    generator = torch.Generator().manual_seed(len(shapes))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(stored) for shape in shapes]
    places = written(tmp_path_factory.mktemp("weights") / "w", tensors)
    counted: list[int] = []
    found = read_tensors(
        {str(i): (place, wanted) for i, place in enumerate(places)},
        CPU,
        counted.append,
        ReadOptions(threads, 8 * chunk),
    )
    for i, tensor in enumerate(tensors):
        assert found[str(i)].dtype == wanted and found[str(i)].is_contiguous()
        assert torch.equal(found[str(i)], tensor.to(wanted))
    assert sum(counted) == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_a_file_that_is_replaced_or_changed_in_place_changes_nothing(wanted: torch.dtype, tmp_path: Path) -> None:
    """A mapped file would: or end the process, where it is cut."""
    (place,) = written(tmp_path / "w", [torch.arange(100_000.0)])
    found = read_tensors({"w": (place, wanted)}, CPU)["w"]
    (tmp_path / "w").write_bytes(b"")
    assert torch.equal(found, torch.arange(100_000.0).to(wanted))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_ends_too_early_is_named(threads: int, tmp_path: Path) -> None:
    path = tmp_path / "w"
    places = written(path, [torch.arange(1000.0) for _ in range(4)])
    path.write_bytes(path.read_bytes()[:-100])
    read = {str(i): (place, torch.float32) for i, place in enumerate(places)}
    with pytest.raises(PermanentError, match=rf"{path} ended at byte \d+ while it was read") as caught:
        read_tensors(read, CPU, options=ReadOptions(threads, 64))
    assert caught.value.code == "model_incomplete"
    path.unlink()
    with pytest.raises(PermanentError, match=rf"{path} cannot be read: No such file"):
        read_tensors(read, CPU, options=ReadOptions(threads, 64))
