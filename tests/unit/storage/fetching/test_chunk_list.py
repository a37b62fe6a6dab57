"""The list of a model's chunks."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.storage.fetching.chunk_list import ChunkHasher, ChunkList


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_chunks_do_not_depend_on_how_the_bytes_came(pieces: list[bytes], chunk_bytes: int) -> None:
    hasher = ChunkHasher(chunk_bytes)
    for piece in pieces:
        hasher.update(piece)
    data = b"".join(pieces)
    chunks = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    assert hasher.hashes() == tuple(hashlib.sha256(chunk).hexdigest() for chunk in chunks)


def test_a_list_is_read_as_it_was_written() -> None:
    listed = ChunkList(5, {"vae/a": ("a" * 64, "b" * 64), "empty": ()})
    assert ChunkList.parse(listed.encode()) == listed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"chunk_bytes": 0, "files": {}}',
        b'{"chunk_bytes": 5, "files": {"a": ["zz"]}}',
        b'{"chunk_bytes": 5, "files": {"a": 3}}',
        b'{"chunk_bytes": 5, "files": []}',
    ],
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        ChunkList.parse(data)


def test_a_file_of_another_size_is_told() -> None:
    listed = ChunkList(5, {"a": ("a" * 64, "b" * 64)})
    assert listed.misfit("a", 6) is None and listed.misfit("a", 10) is None and listed.misfit("other", 1) is None
    assert listed.misfit("a", 5) == "it has 5 bytes, which are 1 chunks, and chunks.json has 2 of it"
    assert listed.misfit("a", 0) is not None
