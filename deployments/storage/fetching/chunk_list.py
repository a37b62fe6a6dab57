"""The list of SHA-256 of a model's files by chunks, which `mochi-serve model prepare` writes. Pure."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

CHUNK_LIST = "chunks.json"
CHUNK_BYTES = 32 * 1024 * 1024
MAX_BYTES = 64 * 1024 * 1024
"""The longest list that is read: enough for 20 TB."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ChunkList:
    """SHA-256 of each chunk of some files."""

    chunk_bytes: int
    files: Mapping[str, tuple[str, ...]]  # by name relative to the model; in the order of the file

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises ValueError: it is not what `encode` writes."""
        try:
            content = json.loads(data)
            chunk_bytes, files = content["chunk_bytes"], content["files"]
            found = {str(name): tuple(hashes) for name, hashes in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no list of chunks: {error}") from error
        if not isinstance(chunk_bytes, int) or chunk_bytes < 1:
            raise ValueError("chunk_bytes must be a positive whole number")
        if not all(isinstance(each, str) and _SHA256.fullmatch(each) for hashes in found.values() for each in hashes):
            raise ValueError("a chunk has no SHA-256 of 64 hex digits")
        return cls(chunk_bytes, found)

    def encode(self) -> bytes:
        return json.dumps({"chunk_bytes": self.chunk_bytes, "files": self.files}, indent=1).encode()

    def misfit(self, name: str, size: int) -> str | None:
        """Why a file of this size cannot be the one of the list; None where it may be, or is not in the list."""
        listed = self.files.get(name)
        count = -(-size // self.chunk_bytes)
        if listed is None or len(listed) == count:
            return None
        return f"it has {size} bytes, which are {count} chunks, and {CHUNK_LIST} has {len(listed)} of it"


class ChunkHasher:
    """Takes the SHA-256 of the chunks of what it is shown."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._done: list[str] = []
        self._room = chunk_bytes
        self._digest = hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            taken, view = view[: self._room], view[self._room :]
            self._digest.update(taken)
            self._room -= len(taken)
            if not self._room:
                self._end_chunk()

    def hashes(self) -> tuple[str, ...]:
        """Of all chunks; the last may be shorter. Nothing can be shown to it afterwards."""
        if self._room < self._chunk_bytes:
            self._end_chunk()
        return tuple(self._done)

    def _end_chunk(self) -> None:
        self._done.append(self._digest.hexdigest())
        self._room, self._digest = self._chunk_bytes, hashlib.sha256()
