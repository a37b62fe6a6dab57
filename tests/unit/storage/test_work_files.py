"""What a stage leaves for the next: no changed byte, and nobody else's work, is taken for it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InputUnusableError, PermanentError, StorageUnavailableError
from deployments.storage.work_files import WorkLabel, pack, read_input, unpack
from tests.support.workers.fakes import spec
from tests.support.workers.memory_store import MemoryStore

LABEL = WorkLabel("jobs/video_1/prompt_embeds.safetensors", "revision", "bfloat16", spec())
TENSORS = {"embeds": torch.arange(6.0).view(2, 3).to(torch.bfloat16), "mask": torch.tensor([True, False])}
DATA = pack(LABEL, TENSORS, step="3")


def test_tensors_and_header_come_back() -> None:
    header, tensors = unpack(LABEL, DATA)
    assert header["step"] == "3"
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert pack(LABEL, TENSORS, step="3") == DATA


def test_tensors_that_are_one_are_written_each() -> None:
    """As the embeddings are of a prompt that is its negative prompt, too."""
    whole = torch.arange(6.0)
    _, tensors = unpack(LABEL, pack(LABEL, {"prompt": whole, "negative": whole, "part": whole[2:4]}))
    assert torch.equal(tensors["prompt"], whole) and torch.equal(tensors["negative"], whole)
    assert torch.equal(tensors["part"], whole[2:4])


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    damaged = bytearray(DATA)
    damaged[position] ^= change
    with pytest.raises(InputUnusableError, match="prompt_embeds"):
        unpack(LABEL, bytes(damaged))


@given(st.integers(0, len(DATA) - 1))
def test_a_cut_object_is_noticed(length: int) -> None:
    with pytest.raises(InputUnusableError):
        unpack(LABEL, DATA[:length])


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        (replace(LABEL, key="jobs/video_2/prompt_embeds.safetensors"), f"it was written as {LABEL.key}"),
        (replace(LABEL, revision="newer"), "its revision is 'revision', this model's is 'newer'"),
        (replace(LABEL, dtype="float32"), "its dtype is 'bfloat16', this model's is 'float32'"),
        (replace(LABEL, spec=spec("a blue square")), "it was made for another request"),
    ],
)
def test_what_is_foreign_is_refused_by_name(reader: WorkLabel, why: str) -> None:
    with pytest.raises(InputUnusableError, match=why):
        unpack(reader, DATA)


async def test_what_is_gone_is_no_failure_of_the_job() -> None:
    with pytest.raises(InputUnusableError, match="prompt_embeds"):
        await read_input(MemoryStore(), LABEL)


async def test_a_store_that_is_away_has_lost_nothing() -> None:
    class Away(MemoryStore):
        async def get(self, key: str) -> bytes:
            raise StorageUnavailableError("no answer")

    class Odd(MemoryStore):
        async def get(self, key: str) -> bytes:
            raise PermanentError("bad_object_key", "no such form")

    for store in (Away(), Odd()):
        with pytest.raises((StorageUnavailableError, PermanentError)):
            await read_input(store, LABEL)
