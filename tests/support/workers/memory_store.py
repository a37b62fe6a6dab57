"""An object store in memory, behind the interface of the real one."""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from deployments.errors import PermanentError, StorageUnavailableError
from deployments.storage.object_store import Bucket, ListedObject, ObjectInfo, ObjectRange

PAGE = 3
CHUNK_BYTES = 1000


class MemoryStore(Bucket):
    """Objects in a dict, with the order of writes and of all changes."""

    def __init__(
        self, down: Callable[[str], bool] = lambda key: False, objects: Mapping[str, bytes] | None = None
    ) -> None:
        self.objects = dict(objects or {})
        self.types: dict[str, str] = {}
        self.modified: dict[str, datetime] = {}
        self.written: list[str] = []
        self.changes: list[tuple[str, str]] = []
        self.down = down  # keys that it fails to write
        self.now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)  # the time of what is written, and of its answers
        self.answers_have_dates = True
        self.reachable = True  # whether it answers what the ingress asks
        self.open_streams = 0  # that are being read

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        if self.down(key):
            raise StorageUnavailableError(f"no answer for {key}")
        self.changes.append(("put", key))
        self.add(key, data, content_type)
        self.written.append(key)

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        await self.put(key, path.read_bytes(), content_type)

    async def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise PermanentError("object_missing", f"no object {key}")
        return self.objects[key]

    async def list_keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    async def delete(self, key: str) -> None:
        self.changes.append(("delete", key))
        self.objects.pop(key, None)

    def add(self, key: str, data: bytes, content_type: str) -> None:
        """An object that is there from the beginning: it is no write."""
        self.objects[key] = data
        self.types[key] = content_type
        self.modified[key] = self.now

    async def ping(self) -> None:
        self._check_reachable()

    async def stat(self, key: str) -> ObjectInfo | None:
        self._check_reachable()
        if key not in self.objects:
            return None
        data = self.objects[key]
        etag = self._etag(data)
        kind = self.types.get(key, "application/octet-stream")
        return ObjectInfo(len(data), etag, self.modified.get(key), kind, self.now if self.answers_have_dates else None)

    async def stream(self, key: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        self._check_reachable()
        data = (await self.get(key))[offset:][:length]
        self.open_streams += 1
        try:
            for start in range(0, len(data), CHUNK_BYTES):
                yield data[start : start + CHUNK_BYTES]
        finally:
            self.open_streams -= 1

    def _check_reachable(self) -> None:
        if not self.reachable:
            raise StorageUnavailableError("the object store does not answer")

    async def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]:
        keys = await self.list_keys(prefix)
        for first in range(0, len(keys), PAGE):
            yield [ListedObject(key, self.modified.get(key)) for key in keys[first : first + PAGE]]

    async def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self.delete(key)

    def list_objects(self, prefix: str) -> list[ListedObject]:
        self._check_reachable()
        return [
            ListedObject(key, self.modified.get(key), len(data), self._etag(data))
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        ]

    @contextmanager
    def open_range(self, key: str, offset: int, length: int) -> Iterator[ObjectRange]:
        self._check_reachable()
        if key not in self.objects:
            raise PermanentError("object_missing", f"no object {key}")
        data = self.objects[key]
        part = data[offset : offset + length]
        yield ObjectRange(self._etag(data), (part[i : i + CHUNK_BYTES] for i in range(0, len(part), CHUNK_BYTES)))

    def _etag(self, data: bytes) -> str:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def presigned_get(self, key: str, seconds: int, filename: str, content_type: str) -> str:
        return f"https://store.example/{key}?expires={seconds}&filename={filename}&type={content_type}"
