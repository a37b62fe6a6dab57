"""Object storage, the only way of tensors and videos: any S3 API, through the `minio` package.

The store may be killed and restarted at any time. Requests that are safe to repeat are tried again
for about three seconds; then a StorageUnavailableError, which is transient, asks the caller to try
the stage again.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import quote

import certifi
import urllib3
from minio import Minio
from minio.deleteobjects import DeleteError, DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error
from minio.time import from_http_header
from urllib3.response import BaseHTTPResponse

from deployments.errors import PermanentError, StorageRefusedError, StorageUnavailableError
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from deployments.settings import StorageSettings

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024  # of a stream
RANGE_CHUNK_BYTES = 1024 * 1024  # of a model
PART_BYTES = 16 * 1024 * 1024  # of an upload
CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 30.0  # without a byte of an answer
HEALTH_S = 2.0  # within which the store says whether it works
CONNECTIONS = 32
THREADS = 16  # for requests, and as many for what is read by and by: a store that hangs holds each for READ_TIMEOUT_S
PAGE = 1000  # the most that one request of the S3 API lists or deletes

OBJECT_MISSING = "object_missing"
UNCOUNTED = ""
OTHER = "other"

# Codes of S3's errors.
_MISSING = frozenset({"NoSuchKey", "NoSuchObject"})
_BUCKET_EXISTS = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})
_TRANSIENT = frozenset({"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown"})


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store knows of an object. Times are the store's own, with a time zone."""

    size: int  # bytes
    etag: str  # without quotes
    modified: datetime | None
    content_type: str
    answered_at: datetime | None = None  # the Date header of the answer, to the second


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One entry of a listing."""

    key: str
    modified: datetime | None  # by the store's clock, with a time zone
    size: int = 0  # bytes
    etag: str = ""  # without quotes


@dataclass(frozen=True, slots=True)
class ObjectRange:
    """A part of an object while it is read."""

    etag: str  # of the whole object, without quotes
    chunks: Iterator[bytes]


class Store(Protocol):
    """Objects by key, as the work on a task reads and writes them.

    Every method, here and in Bucket, raises StorageUnavailableError (transient) when the store cannot be reached or
    answers 5xx or 429, and its kind StorageRefusedError when it refuses: wrong keys, no such bucket.
    """

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Write an object whole; readers see the old one or the new one, never a part."""

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        """Write a file as an object, in parts, so that no more than some 50 MB are held in memory."""

    async def get(self, key: str) -> bytes:
        """Read an object whole. Raises PermanentError `object_missing` when there is none."""

    async def list_keys(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, in the store's order."""

    async def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""


class Bucket(Store, Protocol):
    """A whole bucket, as the ingress, the sweeper and the loading of models use it."""

    async def ping(self) -> None:
        """Return if the store answers, takes our keys and has the bucket; raise otherwise."""

    async def stat(self, key: str) -> ObjectInfo | None:
        """Size, type and times of an object; None when there is none."""

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Read bytes offset to offset + length (to the end without length) in chunks of at most 256 KiB.

        Use `contextlib.aclosing` where the reading may stop early: the connection is freed with the
        iterator. Raises PermanentError `object_missing` at the first chunk when there is no such
        object.
        """

    def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]:
        """All objects whose keys begin with `prefix`, at most 1000 at a time, in the store's order.

        A page is asked for when it is wanted, so that any number of objects can be listed in little
        memory. What was listed may be deleted before the next page.
        """

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, 1000 in one request; no error for those that are not there.

        After an error some may be gone and others not: it is safe to do it again.
        """

    def list_objects(self, prefix: str) -> list[ListedObject]:
        """All objects whose keys begin with `prefix`, in the store's order. Blocks."""

    def open_range(self, key: str, offset: int, length: int) -> AbstractContextManager[ObjectRange]:
        """Read bytes offset to offset + length, at least one, in chunks. Blocks, also while they are read.

        Raises PermanentError `object_missing` when there is no such object.
        """

    def presigned_get(self, key: str, seconds: int, filename: str, content_type: str) -> str:
        """A link that downloads the object without keys, at the public endpoint if there is one.

        Made here without asking the store, which may have no such object. Good for GET alone.

        Args:
            seconds: how long it is good, 1 to 604800.
            filename: under which clients keep the file.
            content_type: what the store answers with.
        """


class ObjectStore(Bucket):
    """One bucket of an S3 API.

    Args:
        settings: with an endpoint and keys.
        read_timeout_s: seconds without a byte of an answer after which the store counts as away.
        health_s: the same for `ping`, which has a thread and a connection of its own.
    """

    def __init__(
        self, settings: StorageSettings, read_timeout_s: float = READ_TIMEOUT_S, health_s: float = HEALTH_S
    ) -> None:
        if settings.endpoint is None or settings.access_key is None or settings.secret_key is None:
            raise ValueError("the object store needs an endpoint, an access_key and a secret_key")
        self.bucket = settings.bucket
        self._where = f"the object store at {settings.endpoint}"
        self._pool = _connection_pool(CONNECT_TIMEOUT_S, read_timeout_s, retries=4)
        self._threads = ThreadPoolExecutor(THREADS, "store")
        self._download_threads = ThreadPoolExecutor(THREADS, "store-download")
        self._health_s = health_s
        self._health_thread = ThreadPoolExecutor(1, "store-health")
        self._health: asyncio.Future[bool] | None = None  # the answer that is waited for
        connect = partial(
            Minio,
            access_key=settings.access_key.get_secret_value(),
            secret_key=settings.secret_key.get_secret_value(),
            region=settings.region,
        )
        self._client = connect(settings.endpoint, secure=settings.secure, http_client=self._pool)
        health_pool = _connection_pool(health_s, health_s, retries=1)
        self._health_client = connect(settings.endpoint, secure=settings.secure, http_client=health_pool)
        # A signature covers the name of the host: links are made for the one that clients use. It is never asked.
        public = settings.public_endpoint
        self._public_client = self._client if public is None else connect(public, secure=settings.public_secure)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        await self._in_thread(
            lambda: self._client.put_object(self.bucket, key, BytesIO(data), len(data), content_type=content_type),
            operation="put",
        )

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        await self._in_thread(
            lambda: self._client.fput_object(
                self.bucket, key, str(path), content_type=content_type, part_size=PART_BYTES
            ),
            operation="put",
        )

    async def get(self, key: str) -> bytes:
        def read() -> bytes:
            response = self._client.get_object(self.bucket, key)
            try:
                return response.read()
            finally:
                _release(response)

        return await self._in_thread(read, key, operation="get")

    async def stat(self, key: str) -> ObjectInfo | None:
        try:
            found = await self._in_thread(lambda: self._client.stat_object(self.bucket, key), key, operation="stat")
        except PermanentError as error:
            if error.code == OBJECT_MISSING:
                return None
            raise
        return ObjectInfo(
            size=found.size or 0,
            etag=(found.etag or "").strip('"'),
            modified=found.last_modified,
            content_type=found.content_type or "application/octet-stream",
            answered_at=_http_date((found.metadata or {}).get("date")),
        )

    async def stream(self, key: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        def read_chunk() -> bytes:
            return response.read(CHUNK_BYTES)

        if length == 0:
            return
        response = await self._in_thread(
            lambda: self._client.get_object(self.bucket, key, offset=offset, length=length or 0),
            key,
            self._download_threads,
            "get",
        )
        try:
            while chunk := await self._in_thread(read_chunk, pool=self._download_threads, operation=UNCOUNTED):
                yield chunk
        finally:
            await asyncio.shield(asyncio.to_thread(_release, response))

    async def delete(self, key: str) -> None:
        await self._in_thread(lambda: self._client.remove_object(self.bucket, key), operation="delete")

    async def delete_many(self, keys: Sequence[str]) -> None:
        def delete() -> None:
            errors = self._client.remove_objects(self.bucket, [DeleteObject(key) for key in keys])
            kept = [error for error in errors if error.code not in _MISSING]
            if kept:
                raise self._not_deleted(kept)

        await self._in_thread(delete, operation="delete")

    async def list_keys(self, prefix: str) -> list[str]:
        return await self._in_thread(lambda: self._keys(prefix), operation="list")

    async def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]:
        listing = self._listing(prefix)
        while page := await self._in_thread(lambda: list(islice(listing, PAGE)), operation="list"):
            yield page

    async def ensure_bucket(self) -> None:
        """Make the bucket unless it is there."""

        def make() -> None:
            if self._client.bucket_exists(self.bucket):
                return
            try:
                self._client.make_bucket(self.bucket)
            except S3Error as error:
                if error.code not in _BUCKET_EXISTS:  # made by another in the meantime
                    raise

        await self._in_thread(make)

    async def ping(self) -> None:
        # Who asks while another one waits gets the same answer: no queue forms before a store that hangs.
        if self._health is None or self._health.done():
            self._health = self._ask_for_bucket()
        try:
            async with asyncio.timeout(self._health_s):
                is_there = await asyncio.shield(self._health)
        except TimeoutError as error:
            raise StorageUnavailableError(f"{self._where} gave no answer within {self._health_s:g} s") from error
        if not is_there:
            raise self._no_bucket()

    def list_objects(self, prefix: str) -> list[ListedObject]:
        with _counting("list"), self._translate_errors():
            return list(self._listing(prefix))

    @contextmanager
    def open_range(self, key: str, offset: int, length: int) -> Iterator[ObjectRange]:
        with self._translate_errors(key):
            with _counting("get"):
                response = self._client.get_object(self.bucket, key, offset=offset, length=length)
            try:
                etag = (response.headers.get("etag") or "").strip('"')
                yield ObjectRange(etag, iter(partial(response.read, RANGE_CHUNK_BYTES), b""))
            finally:
                _release(response)

    def presigned_get(self, key: str, seconds: int, filename: str, content_type: str) -> str:
        disposition = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        return self._public_client.presigned_get_object(
            self.bucket,
            key,
            expires=timedelta(seconds=seconds),
            response_headers={"response-content-disposition": disposition, "response-content-type": content_type},
        )

    def close(self) -> None:
        """Close the idle connections; the store may be used again afterwards."""
        self._pool.clear()

    def _keys(self, prefix: str) -> list[str]:
        return [listed.key for listed in self._listing(prefix)]

    def _listing(self, prefix: str) -> Iterator[ListedObject]:
        for found in self._client.list_objects(self.bucket, prefix=prefix, recursive=True):
            if found.object_name is not None and not found.is_dir:
                etag = (found.etag or "").strip('"')
                yield ListedObject(found.object_name, found.last_modified, found.size or 0, etag)

    def _ask_for_bucket(self) -> asyncio.Future[bool]:
        def ask() -> bool:
            with _counting(OTHER), self._translate_errors():
                return self._health_client.bucket_exists(self.bucket)

        answer = asyncio.get_running_loop().run_in_executor(self._health_thread, ask)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it any more
        return answer

    async def _in_thread(
        self,
        work: Callable[[], T],
        key: str | None = None,
        pool: ThreadPoolExecutor | None = None,
        operation: str = OTHER,
    ) -> T:
        """Do blocking work in a thread of a pool, that of requests by default. An error names the object `key`.

        Args:
            operation: what it is counted as.
        """

        def run() -> T:
            with _counting(operation), self._translate_errors(key):
                return work()

        # Not the loop's own threads, which also look up names and find the registry.
        return await asyncio.get_running_loop().run_in_executor(pool or self._threads, run)

    @contextmanager
    def _translate_errors(self, key: str | None = None) -> Iterator[None]:
        """Turn the errors of minio and urllib3 into ours."""
        try:
            yield
        except S3Error as error:
            raise self._from_s3(error, key) from error
        except (urllib3.exceptions.HTTPError, InvalidResponseError, MinioException) as error:
            raise StorageUnavailableError(f"{self._where}: {error}") from error

    def _from_s3(self, error: S3Error, key: str | None) -> PermanentError | StorageUnavailableError:
        if error.code in _MISSING:
            name = key or error.object_name
            return PermanentError("object_missing", f"{name} is not in the object store any more")
        if error.code in _TRANSIENT or error.response.status == 429 or error.response.status >= 500:
            return StorageUnavailableError(f"{self._where} cannot serve now: {error.code} {error.message}")
        if error.code == "NoSuchBucket":
            return self._no_bucket()
        return StorageRefusedError(f"{self._where}: {error.code} {error.message}; check storage's keys, and the clock")

    def _not_deleted(self, kept: Sequence[DeleteError]) -> StorageUnavailableError:
        first = kept[0]
        what = f"{len(kept)} objects, the first one {self.bucket}/{first.name}: {first.code} {first.message or ''}"
        if first.code in _TRANSIENT:
            return StorageUnavailableError(f"{self._where} cannot delete now {what}")
        return StorageRefusedError(f"{self._where} refused to delete {what}; check storage's keys")

    def _no_bucket(self) -> StorageRefusedError:
        return StorageRefusedError(f"{self._where} has no bucket {self.bucket!r}; make it")


class _Retry(urllib3.Retry):
    """Does not repeat what timed out while it waited for an answer: a store that hangs has had its time."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> Self:
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


def _connection_pool(connect_timeout_s: float, read_timeout_s: float, retries: int) -> urllib3.PoolManager:
    """Four retries cover a restart of the store (pauses 0, 0.4, 0.8, 1.6 s); POST is never repeated."""
    return urllib3.PoolManager(
        num_pools=2,
        maxsize=CONNECTIONS,
        timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s),
        retries=_Retry(total=retries, redirect=2, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )


@contextmanager
def _counting(operation: str) -> Iterator[None]:
    """Count a request, with how long it took and how it ended; UNCOUNTED is a part of one that is counted."""
    begun, outcome = time.perf_counter(), "failed"
    try:
        yield
        outcome = "done"
    except (PermanentError, S3Error) as error:
        outcome = "missing" if error.code in (OBJECT_MISSING, *_MISSING) else outcome
        raise
    finally:
        if operation != UNCOUNTED:
            RECORDER.observe(names.STORE_SECONDS, time.perf_counter() - begun, operation)
            RECORDER.count(names.STORE_REQUESTS, operation, outcome)


def _release(response: BaseHTTPResponse) -> None:
    """Back to the pool when read to its end; a connection with bytes still in it is closed instead."""
    response.close()
    response.release_conn()


def _http_date(value: str | None) -> datetime | None:
    """None also for what is no date: not every proxy passes the header on as it was."""
    try:
        return None if value is None else from_http_header(value)
    except ValueError:
        return None
