"""A model from a prefix in the object store, kept in a folder of the cache.

Each state of the prefix, told by the names, sizes and ETags of its objects, has a folder of its own, so what is being
loaded is never changed. Files that are the same in a new state are not fetched again.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from deployments.atomic_write import write_atomically
from deployments.dtypes import Dtypes, part_dtype
from deployments.errors import PermanentError, StorageUnavailableError, TransientError
from deployments.storage import positions
from deployments.storage.file_hashes import HASHES_AT_ONCE, HashRecord
from deployments.storage.model_layout import ModelFiles, check_layout
from deployments.storage.object_store import Bucket, ListedObject
from deployments.storage.partial_file import PREFIX as PARTIAL_PREFIX
from deployments.storage.partial_file import PartialFile
from deployments.storage.weight_files import INDEX, PARTS, needed_files

MANIFEST = ".manifest.json"
USED = ".used"
LOCK = ".lock"
VERSION_CHARS = 16
RANGES_AT_ONCE = 8
CHANGES_FOLLOWED = 3
_logger = logging.getLogger("ray.serve")


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How a model is fetched."""

    range_bytes: int = 64 * 1024 * 1024  # that are fetched by one request
    pauses_s: tuple[float, ...] = (1, 2, 4, 8, 16)  # before a range is tried again; then the fetch fails
    unused_s: float = 3600  # after which a folder of an older state is removed
    free_bytes: Callable[[Path], int] = free_bytes  # on the disk of a folder


class BucketFiles(ModelFiles):
    """The files of a model under a prefix of a bucket, as they are listed now.

    Raises:
        PermanentError: `object_missing`, nothing is there; `bad_object_key`, a key would leave the folder.
        StorageUnavailableError: the object store could not be reached.
    """

    def __init__(self, source: str, bucket: Bucket, prefix: str) -> None:
        self.source = source
        self.bucket = bucket
        self._prefix = f"{prefix}/"
        self.listed = {_relative(found.key, self._prefix): found for found in bucket.list_objects(self._prefix)}
        if not self.listed:
            raise PermanentError("object_missing", f"there is nothing under {source} in the object store")

    @property
    def where(self) -> str:
        return self.source

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: found.size for name, found in self.listed.items()}

    @property
    def version(self) -> str:
        """A short name for the state of all objects."""
        state = sorted((name, found.size, found.etag) for name, found in self.listed.items())
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:VERSION_CHARS]

    def read(self, name: str, offset: int, length: int) -> bytes:
        """As of every model. Raises TransientError `model_changed`: it is another object than was listed."""
        if length == 0:
            return b""
        with self.bucket.open_range(self._prefix + name, offset, length) as found:
            if found.etag != self.listed[name].etag:
                raise TransientError("model_changed", f"{self.source}/{name} was changed while it was looked at")
            return b"".join(found.chunks)


def fetch_model(
    source: str,
    bucket: Bucket,
    prefix: str,
    parts: Sequence[str],
    dtypes: Dtypes,
    cache: Path,
    hashes: HashRecord,
    options: FetchOptions = FetchOptions(),
) -> Path:
    """The folder in the cache with these parts as they are in the bucket now. Blocks.

    Args:
        source: ``s3://bucket/prefix``.
        bucket: of the source.
        prefix: of the source, without slashes around it.
        parts: as in `check_layout`.
        dtypes: that the parts compute in: of several variants of the weights, the one that fits is fetched.
        cache: of all models.
        hashes: of files that were fetched before.

    Raises:
        PermanentError: `object_missing`, `bad_object_key`; `model_incomplete` and `model_unsupported` of
            `check_layout`, before anything is fetched; `cache_unusable`, it cannot be written or has no room.
        TransientError: `model_changed`, the model is being changed; StorageUnavailableError.
    """

    def run(fetch: "_Fetch") -> Path:
        return fetch.run(parts, dtypes)

    return _fetch_newest(source, bucket, prefix, cache, hashes, options, run)


def fetch_files(
    source: str,
    bucket: Bucket,
    prefix: str,
    choose: Callable[[Sequence[str]], Sequence[str]],
    cache: Path,
    hashes: HashRecord,
    options: FetchOptions = FetchOptions(),
) -> Path:
    """The folder in the cache with some files of a prefix as they are in the bucket now. Blocks.

    Args:
        choose: of the names of all files there, relative to the prefix, those that are needed.

    The others, and what is raised, as of `fetch_model`.
    """

    def run(fetch: "_Fetch") -> Path:
        return fetch.bring(choose(list(fetch.sizes)))

    return _fetch_newest(source, bucket, prefix, cache, hashes, options, run)


def _fetch_newest(
    source: str,
    bucket: Bucket,
    prefix: str,
    cache: Path,
    hashes: HashRecord,
    options: FetchOptions,
    run: "Callable[[_Fetch], Path]",
) -> Path:
    """What `run` fetches of the prefix, from the beginning if that is changed meanwhile."""
    home = cache / f"{prefix.rsplit('/', 1)[-1]}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / LOCK):
            for attempt in range(1, CHANGES_FOLLOWED + 1):
                try:
                    return run(_Fetch(BucketFiles(source, bucket, prefix), home, hashes, options))
                except TransientError as error:
                    if error.code != "model_changed" or attempt == CHANGES_FOLLOWED:
                        raise
    except OSError as error:
        raise PermanentError(
            "cache_unusable",
            f"the cache of models {home} cannot be written ({error.strerror}); free or mend it, or name another folder "
            "with MOCHI_SERVE_MODEL_CACHE",
        ) from error
    raise AssertionError("not reached")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file that was fetched, as the manifest has it."""

    size: int
    etag: str
    sha256: str


class _Fetch:
    """Brings one state of a prefix into its folder; holds the lock of `home`."""

    def __init__(self, files: BucketFiles, home: Path, hashes: HashRecord, options: FetchOptions) -> None:
        self._files = files
        self._home = home
        self._folder = home / files.version
        self._hashes = hashes
        self._options = options

    def run(self, parts: Sequence[str], dtypes: Dtypes) -> Path:
        names = needed_files(self._files.sizes, [part for part in parts if part in self._parts_there], dtypes)
        self.bring(names, check=lambda: check_layout(self._files, parts, dtypes))
        if positions.PART in parts:
            positions.bring_positions(self._files, self._folder, part_dtype(dtypes, positions.PART))
        return self._folder

    def bring(self, names: Sequence[str], check: Callable[[], None] = lambda: None) -> Path:
        """The folder with these files. check: what is to be known before anything is fetched."""
        self._folder.mkdir(exist_ok=True)
        (self._folder / USED).touch()
        if self._missing(names):
            check()
            self._link_unchanged(self._missing(names))
            self._fetch(self._missing(names))
            self._remove_old()
        return self._folder

    @property
    def sizes(self) -> Mapping[str, int]:
        """Of all files in the bucket."""
        return self._files.sizes

    @property
    def _parts_there(self) -> set[str]:
        return {name.partition("/")[0] for name in self._files.sizes}

    def _missing(self, names: Sequence[str]) -> list[str]:
        """Those of the files that are not here, or not as they were fetched."""
        manifest = _read_manifest(self._folder)
        with ThreadPoolExecutor(HASHES_AT_ONCE) as pool:
            whole = pool.map(lambda name: self._is_whole(name, manifest.get(name)), names)
        return [name for name, is_whole in zip(names, whole, strict=True) if not is_whole]

    def _is_whole(self, name: str, kept: _Kept | None) -> bool:
        path = self._folder / name
        if kept is None or not path.is_file():
            return False
        if path.stat().st_size == kept.size and self._hashes.sha256(path) == kept.sha256:
            return True
        _logger.warning("%s is not as it was fetched from %s: it is fetched again", path, self._files.where)
        return False

    def _link_unchanged(self, names: Sequence[str]) -> None:
        """Take over files of other states."""
        for other in self._versions():
            manifest = _read_manifest(other)
            for name in names:
                found, kept = self._files.listed[name], manifest.get(name)
                if kept is None or (kept.size, kept.etag) != (found.size, found.etag):
                    continue
                with suppress(OSError):
                    (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (self._folder / name).unlink(missing_ok=True)
                    os.link(other / name, self._folder / name)
                    self._note({name: kept})

    def _fetch(self, names: Sequence[str]) -> None:
        size_of = self._files.sizes
        drafts = {name: PartialFile(self._folder / name, size_of[name], self._options.range_bytes) for name in names}
        needed = sum(length for draft in drafts.values() for _, length in draft.missing)
        self._check_room(needed)
        _logger.info("fetching %.1f MB of %s to %s", needed / 1e6, self._files.where, self._folder)
        with ExitStack() as stack:
            for draft in drafts.values():
                stack.enter_context(draft.opened())
            self._fetch_ranges(drafts)
            for draft in drafts.values():
                draft.finish()
        with ThreadPoolExecutor(HASHES_AT_ONCE) as pool:
            taken = list(pool.map(lambda name: self._hashes.sha256(self._folder / name), names))
        listed = self._files.listed
        self._note(
            {
                name: _Kept(listed[name].size, listed[name].etag, sha256)
                for name, sha256 in zip(names, taken, strict=True)
            }
        )

    def _check_room(self, needed: int) -> None:
        free = self._options.free_bytes(self._folder)
        if needed > free:
            raise PermanentError(
                "cache_unusable",
                f"the cache of models {self._home} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB of "
                f"{self._files.where} are missing; make room, or name another folder with MOCHI_SERVE_MODEL_CACHE",
            )

    def _fetch_ranges(self, drafts: Mapping[str, PartialFile]) -> None:
        with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
            jobs = [
                pool.submit(self._fetch_range, self._files.listed[name], draft, offset, length)
                for name, draft in drafts.items()
                for offset, length in draft.missing
            ]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _fetch_range(self, found: ListedObject, draft: PartialFile, offset: int, length: int) -> None:
        """A store that stops sending fails the read after its timeout; it is then asked again, a few times."""
        for pause in (*self._options.pauses_s, None):
            try:
                self._read_range(found, draft, offset, length)
                return
            except StorageUnavailableError as error:
                if pause is None:
                    raise
                _logger.warning("%s at byte %d: %s; it is tried again in %g s", found.key, offset, error, pause)
                time.sleep(pause)

    def _read_range(self, found: ListedObject, draft: PartialFile, offset: int, length: int) -> None:
        position = offset
        with self._files.bucket.open_range(found.key, offset, length) as part:
            if part.etag != found.etag:
                raise TransientError("model_changed", f"{found.key} was changed while {self._files.where} was fetched")
            for chunk in part.chunks:
                draft.write(position, chunk)
                position += len(chunk)
        if position != offset + length:
            raise StorageUnavailableError(f"{found.key}: {position - offset} bytes came instead of {length}")
        draft.finish_range(offset, length)

    def _note(self, kept: Mapping[str, _Kept]) -> None:
        files = {**_read_manifest(self._folder), **kept}
        content = {name: [file.size, file.etag, file.sha256] for name, file in files.items()}
        write_atomically(self._folder / MANIFEST, json.dumps(content, indent=1).encode())

    def _versions(self) -> list[Path]:
        """Folders of other states."""
        return [path.parent for path in self._home.glob(f"*/{USED}") if path.parent != self._folder]

    def _remove_old(self) -> None:
        """Remove states that nobody used lately, what is left of their fetches, and what earlier releases kept here."""
        for version in self._versions():
            if time.time() - (version / USED).stat().st_mtime > self._options.unused_s:
                shutil.rmtree(version, ignore_errors=True)
            for path in version.rglob(f"{PARTIAL_PREFIX}*"):
                path.unlink(missing_ok=True)
        for path in [*(self._home / part for part in PARTS), *self._home.glob(f"{PARTIAL_PREFIX}*")]:
            shutil.rmtree(path, ignore_errors=True)
        (self._home / INDEX).unlink(missing_ok=True)


def _read_manifest(folder: Path) -> dict[str, _Kept]:
    try:
        content = json.loads((folder / MANIFEST).read_text())
        return {str(name): _Kept(int(size), str(etag), str(sha256)) for name, (size, etag, sha256) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _relative(key: str, prefix: str) -> str:
    name = key.removeprefix(prefix)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise PermanentError("bad_object_key", f"the key {key!r} would be written outside of its folder")
    return name
