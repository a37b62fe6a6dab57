"""A file that is fetched in ranges, several at once, and goes on where a killed process stopped."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

PREFIX = ".partial-"


class PartialFile:
    """The draft of a file, beside it; the caller sees to it that one process alone works on it.

    A range is noted once its bytes are on the disk.

    Args:
        target: the file, once it is whole.
        size: of the whole file in bytes.
        range_bytes: length of a range; the last one may be shorter.
    """

    def __init__(self, target: Path, size: int, range_bytes: int) -> None:
        self.target = target
        self._draft = target.with_name(f"{PREFIX}{target.name}")
        self._notes = target.with_name(f"{PREFIX}{target.name}.done")
        self._size = size
        self._ranges = [(start, min(range_bytes, size - start)) for start in range(0, size, range_bytes)]
        self._done = self._read_notes()
        self._lock = threading.Lock()
        self._file = -1

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Offset and length of the ranges that are not there."""
        return [part for part in self._ranges if part not in self._done]

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Make or open the draft, which has its full length from the beginning. Raises OSError."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._draft, os.O_RDWR | os.O_CREAT, 0o666)
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

    def finish_range(self, offset: int, length: int) -> None:
        """Note a range whose bytes are all written. Thread-safe."""
        os.fsync(self._file)
        with self._lock, self._notes.open("a") as notes:
            notes.write(f"{offset} {length}\n")
            self._done.add((offset, length))

    def finish(self) -> None:
        """Give the whole file its name."""
        os.fsync(self._file)
        self._draft.replace(self.target)
        self._notes.unlink(missing_ok=True)

    def _read_notes(self) -> set[tuple[int, int]]:
        try:
            if self._draft.stat().st_size != self._size:
                return set()
            lines = self._notes.read_text().split("\n")[:-1]  # the last may be half a line
            return {(int(line.split()[0]), int(line.split()[1])) for line in lines}
        except (OSError, ValueError, IndexError):
            return set()
