"""A file that is fetched in chunks, several at once, and goes on where a killed process stopped."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

PREFIX = ".partial-"


class PartialFile:
    """The draft of a file, beside it; the caller sees to it that one process alone works on it.

    A chunk is noted, with its SHA-256, once its bytes are on the disk.

    Args:
        target: the file, once it is whole.
        size: of the whole file in bytes.
        chunk_bytes: length of a chunk; the last one may be shorter.
    """

    def __init__(self, target: Path, size: int, chunk_bytes: int) -> None:
        self.target = target
        self.draft = target.with_name(f"{PREFIX}{target.name}")
        self._notes = target.with_name(f"{PREFIX}{target.name}.done")
        self._size = size
        self._chunks = [(start, min(chunk_bytes, size - start)) for start in range(0, size, chunk_bytes)]
        self._done = self._read_notes()
        self._lock = threading.Lock()
        self._file = -1

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Offset and length of the chunks that are not there."""
        return [chunk for chunk in self._chunks if chunk not in self._done]

    @property
    def done(self) -> dict[tuple[int, int], str]:
        """SHA-256 of the chunks that are there, by offset and length."""
        with self._lock:
            return {chunk: self._done[chunk] for chunk in self._chunks if chunk in self._done}

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Make or open the draft, which has its full length from the beginning. Raises OSError."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.draft, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.ftruncate(self._file, self._size)
            if not self._done:
                self._notes.write_text("")
            yield self
        finally:
            os.close(self._file)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at their place. Thread-safe."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def finish_chunk(self, offset: int, length: int, sha256: str) -> None:
        """Note a chunk whose bytes are all written. Thread-safe."""
        os.fdatasync(self._file)
        with self._lock, self._notes.open("a") as notes:
            notes.write(f"{offset} {length} {sha256}\n")
            self._done[offset, length] = sha256

    def finish(self) -> None:
        """Give the whole file its name."""
        os.fsync(self._file)
        self.draft.replace(self.target)
        self._notes.unlink(missing_ok=True)

    def _read_notes(self) -> dict[tuple[int, int], str]:
        try:
            if self.draft.stat().st_size != self._size:
                return {}
            lines = self._notes.read_text().split("\n")[:-1]  # the last may be half a line
            parts = [line.split() for line in lines]
            return {(int(offset), int(length)): sha256 for offset, length, sha256 in parts}
        except (OSError, ValueError):
            return {}
