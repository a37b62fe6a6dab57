"""What a safetensors file says of itself in its header, read without its tensors.

The format: 8 bytes with the length of the header (little endian), the header as JSON, then the bytes of the tensors
without a gap (https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 100_000_000
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

ReadBytes = Callable[[int, int], bytes]
"""Reads a file by offset and length."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as a header tells it."""

    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    nbytes: int


def safetensors_header(file: BinaryIO) -> dict[str, Any]:
    """The JSON header of a safetensors file, read from its beginning; `file` then stands at the first tensor's byte.

    Raises:
        ValueError: it has none.
    """
    length = _header_length(file.read(8))
    return _parse(file.read(length))


def stored_tensors(read: ReadBytes, size: int) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, by its header alone.

    Args:
        size: of the file in bytes.

    Raises:
        ValueError: the header cannot be read, or does not fit the size: the file is cut short, or is none of these.
    """
    if size == 0:
        raise ValueError("it is empty")
    length = _header_length(read(0, min(8, size)))
    if 8 + length > size:
        raise ValueError(f"it is cut short: the header has {length} bytes, the whole file {size}")
    header = _parse(read(8, length))
    header.pop("__metadata__", None)
    _check_ranges(header, size - 8 - length)
    return {name: _tensor_info(entry, start=8 + length) for name, entry in header.items()}


def safetensors_start(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str], alignment: int = 8
) -> bytes:
    """What a file begins with; the bytes of the tensors follow it, in the order given and without a gap.

    Args:
        tensors: dtype as safetensors writes it, and shape, by name.
        metadata: of the file.
        alignment: in bytes, of the first tensor in the file; the header is filled up with spaces.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    reached = 0
    for name, (dtype, shape) in tensors.items():
        end = reached + math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


def _tensor_info(entry: Mapping[str, Any], start: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    return TensorInfo(entry["dtype"], tuple(entry["shape"]), start + begin, end - begin)


def _header_length(start: bytes) -> int:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError(f"no safetensors file: its header would be {length} bytes")
    return length


def _parse(text: bytes) -> dict[str, Any]:
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("no safetensors file: its header must be a JSON object")
    return header


def _check_ranges(header: Mapping[str, Any], available: int) -> None:
    """Check that the tensors follow each other without a gap, each as long as its shape, up to the file's end."""
    reached = 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            expected = math.prod(entry["shape"]) * DTYPE_BYTES.get(entry["dtype"], 0)
            if begin != reached or (expected and end - begin != expected):
                raise ValueError(f"the header is wrong at the tensor {name}")
            reached = end
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is no description of tensors: {error!r}") from error
    if reached != available:
        state = "cut short" if reached > available else "too long"
        raise ValueError(f"it is {state}: the tensors need {reached} bytes and it has {available}")
