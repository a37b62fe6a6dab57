"""Fetches chunks of a model into the drafts of its files, several at once."""

import hashlib
import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

from deployments.errors import PermanentError, StorageUnavailableError, TransientError
from deployments.storage.fetching.chunk_list import CHUNK_LIST
from deployments.storage.fetching.errands import Chunk, Desk, Errand, PeerError
from deployments.storage.fetching.partial_file import PartialFile
from deployments.storage.object_store import Bucket, ListedObject

CHUNKS_AT_ONCE = 8
_logger = logging.getLogger("ray.serve")


class ChunkFetch:
    """One fetch of chunks that are missing.

    Args:
        source: the model, for people.
        listed: the objects, by the names of their files.
        drafts: opened, by the names of their files.
        pauses_s: before a chunk is asked of the bucket again; then the fetch fails.
    """

    def __init__(
        self,
        source: str,
        bucket: Bucket,
        listed: Mapping[str, ListedObject],
        drafts: Mapping[str, PartialFile],
        pauses_s: tuple[float, ...],
    ) -> None:
        self._source = source
        self._bucket = bucket
        self._listed = listed
        self._drafts = drafts
        self._pauses_s = pauses_s
        self._stop = threading.Event()

    def run(self, chunks: Mapping[int, Chunk], desk: Desk) -> None:
        """Fetch what the desk hands out. Blocks.

        Args:
            chunks: that are missing, by their indices.

        Raises:
            PermanentError: `model_incomplete`, what is in the bucket is not what the model's list says; OSError.
            TransientError: `model_changed`; StorageUnavailableError.
        """
        with ThreadPoolExecutor(CHUNKS_AT_ONCE, "fetch") as pool:
            jobs = [pool.submit(self._work, chunks, desk) for _ in range(CHUNKS_AT_ONCE)]
            try:
                for job in as_completed(jobs):
                    job.result()
            finally:
                self._stop.set()
                desk.close()

    def _work(self, chunks: Mapping[int, Chunk], desk: Desk) -> None:
        while not self._stop.is_set() and (errand := desk.take()) is not None:
            chunk = chunks[errand.chunk]
            try:
                sha256 = self._fetch(chunk, errand, desk)
                self._drafts[chunk.name].finish_chunk(chunk.offset, chunk.length, sha256)
            except PeerError as error:
                _logger.warning("%s at byte %d from a peer: %s; it is taken elsewhere", chunk.name, chunk.offset, error)
                desk.failed(errand, error.lied)
            except BaseException:
                desk.failed(errand, lied=False)
                raise
            else:
                desk.done(errand, sha256)

    def _fetch(self, chunk: Chunk, errand: Errand, desk: Desk) -> str:
        """The SHA-256 of the chunk, whose bytes are written."""
        if errand.peer is None:
            return self._from_bucket(chunk)
        try:
            sha256 = self._write(chunk, desk.read(errand, chunk))
        except StorageUnavailableError as error:
            raise PeerError(error.detail) from error
        if sha256 != (chunk.sha256 or errand.sha256):
            raise PeerError(f"{errand.peer} sent other bytes than it should", lied=True)
        return sha256

    def _from_bucket(self, chunk: Chunk) -> str:
        """A store that stops sending fails the read after its timeout; it is then asked again, a few times."""
        damaged = False
        for pause in (*self._pauses_s, None):
            try:
                return self._ask_bucket(chunk)
            except _DamagedError as error:
                if damaged:  # it is so in the bucket, and not by the way
                    raise PermanentError("model_incomplete", f"{error}; upload it again") from error
                damaged = True
            except StorageUnavailableError as error:
                if pause is None:
                    raise
                _logger.warning("%s at byte %d: %s; it is tried again in %g s", chunk.name, chunk.offset, error, pause)
                if self._stop.wait(pause):
                    raise
        raise StorageUnavailableError(f"{chunk.name} at byte {chunk.offset} came damaged")

    def _ask_bucket(self, chunk: Chunk) -> str:
        found = self._listed[chunk.name]
        with self._bucket.open_range(found.key, chunk.offset, chunk.length) as part:
            if part.etag != found.etag:
                raise TransientError("model_changed", f"{found.key} was changed while {self._source} was fetched")
            sha256 = self._write(chunk, part.chunks)
        if chunk.sha256 not in (sha256, None):
            raise _DamagedError(
                f"{self._source}/{chunk.name} is damaged: its {chunk.length} bytes from {chunk.offset} have the "
                f"SHA-256 {sha256[:12]}..., by {CHUNK_LIST} it is {str(chunk.sha256)[:12]}..."
            )
        return sha256

    def _write(self, chunk: Chunk, pieces: Iterable[bytes]) -> str:
        """Write a chunk to its place in the draft. Raises StorageUnavailableError: it is shorter."""
        digest, position = hashlib.sha256(), chunk.offset
        for piece in pieces:
            digest.update(piece)
            self._drafts[chunk.name].write(position, piece)
            position += len(piece)
        if position != chunk.offset + chunk.length:
            raise StorageUnavailableError(f"{chunk.name}: {position - chunk.offset} bytes came, not {chunk.length}")
        return digest.hexdigest()


class _DamagedError(Exception):
    """A chunk has not the SHA-256 of the model's list."""
