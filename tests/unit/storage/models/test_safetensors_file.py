"""What a safetensors file says of itself, and what is no such file."""

import json
from io import BytesIO

import pytest
import torch
from safetensors.torch import save

from deployments.storage.models.safetensors_file import TensorInfo, safetensors_header, stored_tensors

WHOLE = save({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, metadata={"revision": "abc"})


def tensors_of(data: bytes) -> dict[str, TensorInfo]:
    return stored_tensors(lambda offset, length: data[offset : offset + length], len(data))


def with_header(header: object, rest: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def test_the_header_of_a_safetensors_object() -> None:
    file = BytesIO(WHOLE)
    assert safetensors_header(file)["__metadata__"] == {"revision": "abc"}
    assert file.read() == bytes(32)


def test_the_tensors() -> None:
    first = len(WHOLE) - 32
    assert tensors_of(WHOLE) == {
        "a": TensorInfo("F32", (2, 3), first, 24),
        "b": TensorInfo("BF16", (4,), first + 24, 8),
    }
    assert tensors_of(save({})) == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GGUF", "no safetensors file"),
        (b"\xff" * 20, "no safetensors file"),
        (WHOLE[:20], "cut short: the header"),
        (WHOLE[:-1], "cut short: the tensors need 32 bytes and it has 31"),
        (WHOLE + b"x", "too long"),
        (with_header([]), "JSON object"),
        (with_header({"a": 1}), "no description of tensors"),
        (with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "wrong at the tensor a"),
        (with_header({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, bytes(8)), "wrong at the tensor a"),
    ],
)
def test_what_is_damaged_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tensors_of(data)
