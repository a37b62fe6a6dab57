"""What is to be fetched next, and from where: by itself from the bucket alone, in an exchange from other nodes, too."""

import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deployments.errors import TransientError


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file of a model."""

    index: int  # among the chunks of all files under the prefix
    name: str  # of the file, relative to the model
    offset: int
    length: int
    sha256: str | None  # by the model's own list


class ChunkTable:
    """Numbers the chunks of all files of a state of a model: whoever sees the same state has the same numbers."""

    def __init__(self, sizes: Mapping[str, int], chunk_bytes: int, hashes: Mapping[str, Sequence[str]]) -> None:
        self.chunk_bytes = chunk_bytes
        self._sizes = sizes
        self._hashes = hashes
        self._first: dict[str, int] = {}
        self.count = 0
        for name in sorted(sizes):
            self._first[name] = self.count
            self.count += -(-sizes[name] // chunk_bytes)

    def of_file(self, name: str) -> list[Chunk]:
        """In order."""
        size, hashes = self._sizes[name], self._hashes.get(name)
        return [
            Chunk(
                index=self._first[name] + number,
                name=name,
                offset=start,
                length=min(self.chunk_bytes, size - start),
                sha256=None if hashes is None else hashes[number],
            )
            for number, start in enumerate(range(0, size, self.chunk_bytes))
        ]


@dataclass(frozen=True, slots=True)
class Errand:
    """A chunk to fetch now."""

    chunk: int  # its index
    peer: str | None = None  # the address of the node that has it; None: from the bucket
    sha256: str | None = None  # as another node had it from the bucket


class Desk(Protocol):
    """Hands out errands. All methods may be called from several threads."""

    def take(self) -> Errand | None:
        """The next errand, waited for where others are fetching what is left; None when there is nothing more."""

    def done(self, errand: Errand, sha256: str) -> None:
        """The chunk is on the disk."""

    def failed(self, errand: Errand, lied: bool) -> None:
        """The chunk did not come from where it was to come from. lied: other bytes came than should."""

    def read(self, errand: Errand, chunk: Chunk) -> Iterator[bytes]:
        """The bytes of a chunk from a peer. Raises PeerError."""

    def close(self) -> None:
        """Nothing more will be fetched."""


class PeerError(TransientError):
    """A peer did not send what it was said to have."""

    def __init__(self, message: str, lied: bool = False) -> None:
        super().__init__("peer_failed", message)
        self.lied = lied  # it sent other bytes


class Exchange(Protocol):
    """The nodes that fetch and have models, as one of them sees it. It never fails: without it the bucket is asked."""

    def desk(self, state: str, chunk_count: int, wanted: Sequence[int]) -> Desk:
        """Errands for what is wanted of a state of a model.

        Args:
            state: its name, the same on all nodes.
            chunk_count: of all its files.
            wanted: indices of chunks.
        """

    def offer(
        self, state: str, chunk_count: int, have: Mapping[int, str], locate: Callable[[int], "Place | None"]
    ) -> None:
        """Serve chunks to other nodes, until this process ends.

        Args:
            have: SHA-256 of chunks, by their indices.
            locate: where a chunk lies now.
        """


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies on this node."""

    path: Path
    offset: int
    length: int


class BucketDesk(Desk):
    """Everything from the bucket."""

    def __init__(self, wanted: Iterable[int]) -> None:
        self._left: queue.SimpleQueue[int] = queue.SimpleQueue()
        for chunk in wanted:
            self._left.put(chunk)

    def take(self) -> Errand | None:
        try:
            return Errand(self._left.get_nowait())
        except queue.Empty:
            return None

    def done(self, errand: Errand, sha256: str) -> None:
        pass

    def failed(self, errand: Errand, lied: bool) -> None:
        self._left.put(errand.chunk)

    def read(self, errand: Errand, chunk: Chunk) -> Iterator[bytes]:
        raise PeerError("there are no peers")

    def close(self) -> None:
        pass


class BucketAlone(Exchange):
    """No exchange."""

    def desk(self, state: str, chunk_count: int, wanted: Sequence[int]) -> Desk:
        return BucketDesk(wanted)

    def offer(
        self, state: str, chunk_count: int, have: Mapping[int, str], locate: Callable[[int], Place | None]
    ) -> None:
        pass
