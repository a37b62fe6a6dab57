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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from filelock import FileLock

from deployments.dtypes import Dtypes, part_dtype
from deployments.errors import PermanentError, TransientError
from deployments.storage.fetching.cache_room import LOCK, USED, free_bytes, hold, is_held, make_room
from deployments.storage.fetching.chunk_fetch import ChunkFetch
from deployments.storage.fetching.chunk_list import CHUNK_BYTES, CHUNK_LIST, MAX_BYTES, ChunkList
from deployments.storage.fetching.errands import BucketAlone, Chunk, ChunkTable, Exchange, Place
from deployments.storage.fetching.kept_files import KeptFile, note_kept, read_kept
from deployments.storage.fetching.partial_file import PREFIX as PARTIAL_PREFIX
from deployments.storage.fetching.partial_file import PartialFile
from deployments.storage.models import positions
from deployments.storage.models.file_hashes import HashRecord, listed_hashes
from deployments.storage.models.layout import ModelFiles, check_layout
from deployments.storage.models.weight_files import CHECKSUMS, INDEX, PARTS, needed_files
from deployments.storage.object_store import Bucket

VERSION_CHARS = 16
CHANGES_FOLLOWED = 3
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How a model is fetched."""

    chunk_bytes: int = CHUNK_BYTES  # that are fetched by one request, of a model without a list of its chunks
    pauses_s: tuple[float, ...] = (1, 2, 4, 8, 16)  # before a chunk is tried again; then the fetch fails
    unused_s: float = 3600  # after which a folder of an older state that nobody holds is removed
    cache_bytes: int | None = None  # that all models of the cache may take; without it none is removed for another
    exchange: Exchange = BucketAlone()  # with other nodes
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
        with self.open(name, offset, length) as chunks:
            return b"".join(chunks)

    @contextmanager
    def open(self, name: str, offset: int, length: int) -> Iterator[Iterator[bytes]]:
        """The same in chunks, of at least one byte."""
        with self.bucket.open_range(self._prefix + name, offset, length) as found:
            if found.etag != self.listed[name].etag:
                raise TransientError("model_changed", f"{self.source}/{name} was changed while it was looked at")
            yield found.chunks


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


class _Fetch:
    """Brings one state of a prefix into its folder; holds the lock of `home`."""

    def __init__(self, files: BucketFiles, home: Path, hashes: HashRecord, options: FetchOptions) -> None:
        self._files = files
        self._home = home
        self._folder = home / files.version
        self._hashes = hashes
        self._options = options
        self._listed = _chunk_list(files)
        chunk_bytes = options.chunk_bytes if self._listed is None else self._listed.chunk_bytes
        self._table = ChunkTable(files.sizes, chunk_bytes, {} if self._listed is None else self._listed.files)

    def run(self, parts: Sequence[str], dtypes: Dtypes) -> Path:
        names = needed_files(self._files.sizes, [part for part in parts if part in self._parts_there], dtypes)
        self.bring(names, check=lambda: check_layout(self._files, parts, dtypes))
        if positions.PART in parts:
            positions.bring_positions(self._files, self._folder, part_dtype(dtypes, positions.PART))
        return self._folder

    def bring(self, names: Sequence[str], check: Callable[[], None] = lambda: None) -> Path:
        """The folder with these files. check: what is to be known before anything is fetched."""
        self._check_list(names)
        self._folder.mkdir(exist_ok=True)
        hold(self._folder)
        if self._missing(names):
            check()
            self._link_unchanged(self._missing(names))
            self._fetch(self._missing(names))
            self._remove_old()
        self._offer(names)
        return self._folder

    @property
    def sizes(self) -> Mapping[str, int]:
        """Of all files in the bucket."""
        return self._files.sizes

    @property
    def _parts_there(self) -> set[str]:
        return {name.partition("/")[0] for name in self._files.sizes}

    @property
    def _state(self) -> str:
        """The same for all who see the same, in chunks of the same length."""
        return f"{self._files.source}@{self._files.version}/{self._table.chunk_bytes}"

    def _missing(self, names: Sequence[str]) -> list[str]:
        """Those of the files that are not here, or not as they were fetched."""
        kept = read_kept(self._folder)
        return [name for name in names if not self._is_whole(name, kept.get(name))]

    def _is_whole(self, name: str, kept: KeptFile | None) -> bool:
        path = self._folder / name
        if kept is None or not path.is_file():
            return False
        if path.stat().st_size == kept.size and self._hashes.chunks(path, kept.chunk_bytes) == kept.chunks:
            return True
        _logger.warning("%s is not as it was fetched from %s: it is fetched again", path, self._files.where)
        return False

    def _link_unchanged(self, names: Sequence[str]) -> None:
        """Take over files of other states."""
        for other in self._versions():
            known = read_kept(other)
            for name in names:
                found, kept = self._files.listed[name], known.get(name)
                if kept is None or (kept.size, kept.etag) != (found.size, found.etag):
                    continue
                if not self._fits_list(name, kept):
                    continue
                with suppress(OSError):
                    (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (self._folder / name).unlink(missing_ok=True)
                    os.link(other / name, self._folder / name)
                    note_kept(self._folder, {name: kept})

    def _fetch(self, names: Sequence[str]) -> None:
        sizes = self._files.sizes
        drafts = {name: PartialFile(self._folder / name, sizes[name], self._table.chunk_bytes) for name in names}
        needed = sum(length for draft in drafts.values() for _, length in draft.missing)
        room = make_room(self._folder, needed, self._options.cache_bytes, self._options.free_bytes, self._files.where)
        for model in room:
            _logger.info("%s was used last of all and is removed: there was no room", model.folder)
        if room:
            self._hashes.forget_missing()
        _logger.info("fetching %.1f MB of %s to %s", needed / 1e6, self._files.where, self._folder)
        with ExitStack() as stack:
            for draft in drafts.values():
                stack.enter_context(draft.opened())
            self._fetch_chunks(drafts)
            for draft in drafts.values():
                draft.finish()
        self._note(drafts)

    def _fetch_chunks(self, drafts: Mapping[str, PartialFile]) -> None:
        missing: dict[int, Chunk] = {}
        for name, draft in drafts.items():
            left = set(draft.missing)
            missing |= {c.index: c for c in self._table.of_file(name) if (c.offset, c.length) in left}
        self._offer(list(drafts), drafts)
        fetch = ChunkFetch(self._files.where, self._files.bucket, self._files.listed, drafts, self._options.pauses_s)
        fetch.run(missing, self._options.exchange.desk(self._state, self._table.count, list(missing)))

    def _check_list(self, names: Sequence[str]) -> None:
        """Raises PermanentError `model_incomplete`: by its size a file cannot be the one in the list of chunks."""
        for name in names:
            if self._listed is not None and (why := self._listed.misfit(name, self._files.sizes[name])):
                raise PermanentError(
                    "model_incomplete", f"{self._files.where}/{name} is damaged: {why}; upload it again"
                )

    def _fits_list(self, name: str, kept: KeptFile) -> bool:
        """Whether a file that is here is the one in the list of chunks, if that has it."""
        listed = None if self._listed is None else self._listed.files.get(name)
        return listed is None or (kept.chunk_bytes, kept.chunks) == (self._table.chunk_bytes, listed)

    def _note(self, drafts: Mapping[str, PartialFile]) -> None:
        """Keep what is known of files that are whole now: in their folder, and in the record of hashes."""
        listed, sums = self._files.listed, self._sums()
        kept = {}
        for name, draft in drafts.items():
            chunks = tuple(draft.done.values())
            kept[name] = KeptFile(listed[name].size, listed[name].etag, self._table.chunk_bytes, chunks)
            # The list of chunks and that of files are of one hand: what is right by the one is so by the other.
            is_listed = self._listed is not None and name in self._listed.files
            self._hashes.keep(
                self._folder / name, self._table.chunk_bytes, chunks, sums.get(name) if is_listed else None
            )
        note_kept(self._folder, kept)

    def _sums(self) -> dict[str, str]:
        """SHA-256 of whole files, as the model itself lists them."""
        with suppress(FileNotFoundError):
            return listed_hashes((self._folder / CHECKSUMS).read_text(errors="replace"))
        return {}

    def _offer(self, names: Sequence[str], drafts: Mapping[str, PartialFile] = MappingProxyType({})) -> None:
        """Serve these files to other nodes, of a draft what is there."""
        chunks = {chunk.index: chunk for name in names for chunk in self._table.of_file(name)}
        have: dict[int, str] = {}
        for name, draft in drafts.items():
            done = draft.done
            found = {c.index: done.get((c.offset, c.length)) for c in self._table.of_file(name)}
            have |= {index: sha256 for index, sha256 in found.items() if sha256 is not None}
        if not drafts:
            kept = read_kept(self._folder)
            for name in names:
                if kept[name].chunk_bytes == self._table.chunk_bytes:
                    have |= {c.index: s for c, s in zip(self._table.of_file(name), kept[name].chunks, strict=True)}

        def locate(index: int) -> Place | None:
            if (chunk := chunks.get(index)) is None:
                return None
            draft = drafts[chunk.name].draft if chunk.name in drafts else None
            path = draft if draft is not None and draft.exists() else self._folder / chunk.name
            return Place(path, chunk.offset, chunk.length)

        self._options.exchange.offer(self._state, self._table.count, have, locate)

    def _versions(self) -> list[Path]:
        """Folders of other states."""
        return [path.parent for path in self._home.glob(f"*/{USED}") if path.parent != self._folder]

    def _remove_old(self) -> None:
        """Remove states that nobody used lately, what is left of their fetches, and what earlier releases kept here."""
        for version in self._versions():
            unused_s = time.time() - (version / USED).stat().st_mtime
            if unused_s > self._options.unused_s and not is_held(version):
                shutil.rmtree(version, ignore_errors=True)
            for path in version.rglob(f"{PARTIAL_PREFIX}*"):
                path.unlink(missing_ok=True)
        for path in [*(self._home / part for part in PARTS), *self._home.glob(f"{PARTIAL_PREFIX}*")]:
            shutil.rmtree(path, ignore_errors=True)
        (self._home / INDEX).unlink(missing_ok=True)
        self._hashes.forget_missing()


def _chunk_list(files: BucketFiles) -> ChunkList | None:
    """That of the model, if it has one. Raises PermanentError `model_incomplete`: it is damaged."""
    size = files.sizes.get(CHUNK_LIST)
    if size is None:
        return None
    try:
        if size > MAX_BYTES:
            raise ValueError(f"it has {size} bytes")
        return ChunkList.parse(files.read(CHUNK_LIST, 0, size))
    except ValueError as error:
        raise PermanentError(
            "model_incomplete", f"{files.where}/{CHUNK_LIST} is damaged: {error}; upload it again, or remove it"
        ) from error


def _relative(key: str, prefix: str) -> str:
    name = key.removeprefix(prefix)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise PermanentError("bad_object_key", f"the key {key!r} would be written outside of its folder")
    return name
