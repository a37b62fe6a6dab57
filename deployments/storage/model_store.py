"""Where model files come from: a folder, a prefix in the object store, or the Hugging Face hub."""

import asyncio
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from deployments.atomic_write import write_atomically
from deployments.errors import PermanentError
from deployments.settings import DtypeName, ModelSettings
from deployments.storage.file_hashes import HashRecord, check_hashes, known_hashes
from deployments.storage.model_layout import FolderFiles, check_layout
from deployments.storage.object_store import Bucket
from deployments.storage.safetensors_file import safetensors_header
from deployments.storage.weight_files import INDEX, needed_files

OpenBucket = Callable[[str], Bucket]

CACHE_VARIABLE = "MOCHI_SERVE_MODEL_CACHE"
ALWAYS = ("scheduler",)
HASHES = "hashes"
FINGERPRINT_CHARS = 16
SAMPLED_BYTES = 4096
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FORMS = (
    "write a folder (models/shapes), s3://bucket/prefix in the configured object store "
    "(s3://mochi-serve/models/mochi-1), or a hub id (genmo/mochi-1-preview)"
)
_logger = logging.getLogger("ray.serve")


def model_folder(
    model: ModelSettings, parts: tuple[str, ...], open_bucket: OpenBucket, cache: Path | None = None
) -> Path:
    """The local folder of the model with `parts`, fetched first if it lies elsewhere. Blocks.

    Args:
        model: `source` in one of three forms: folder, ``s3://bucket/prefix``, hub id (with
            `revision`).
        parts: subfolders needed, e.g. ``("tokenizer", "text_encoder")``; `model_index.json` and the
            scheduler always come along.
        open_bucket: gives the named bucket of the configured object store.
        cache: where s3 models are kept; by default `MOCHI_SERVE_MODEL_CACHE` or the user's cache
            folder.

    Raises:
        PermanentError: `model_not_found`, `model_source_invalid`, `model_incomplete`, `model_unsupported`
            or `object_missing`.
        StorageUnavailableError: the object store could not be reached.
    """
    source = model.source
    local = Path(source).expanduser()
    if source.startswith("s3://"):
        folder = _from_bucket(source, parts, open_bucket, cache or default_cache())
    elif local.is_dir():
        folder = local
    elif looks_like_path(source):
        raise PermanentError(
            "model_not_found", f"model.source {source!r}: no such folder ({local.absolute()}); {_FORMS}"
        )
    elif _HUB_ID.fullmatch(source):
        folder = _from_hub(source, model.revision, parts)
    else:
        raise PermanentError("model_source_invalid", f"model.source {source!r} is not understood; {_FORMS}")
    needed = (*ALWAYS, *parts)
    files = FolderFiles(folder)
    check_layout(files, needed, model.dtype)
    record = HashRecord((cache or default_cache()) / HASHES, again=model.hash_at_start)
    check_hashes(folder, known_hashes(folder, needed_files(files.sizes, needed, model.dtype)), record)
    return folder


def looks_like_path(source: str) -> bool:
    """Whether `source` can only be meant as a path: rooted, dotted, of several levels, or beside an existing one."""
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        return True
    return Path(source).parent.is_dir()


def default_cache() -> Path:
    """`MOCHI_SERVE_MODEL_CACHE`, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "mochi-serve" / "models"


def read_index(folder: Path) -> dict[str, object]:
    """The pipeline's `model_index.json`.

    Raises:
        PermanentError: `model_incomplete`, not readable as a JSON object.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise PermanentError("model_incomplete", f"{folder / INDEX} cannot be read: {error}") from error
    if not isinstance(index, dict):
        raise PermanentError("model_incomplete", f"{folder / INDEX} must hold a JSON object")
    return index


def model_fingerprint(folder: Path, parts: tuple[str, ...], dtype: DtypeName | None = None) -> str:
    """A short name for exactly these parts of a model, the same wherever the files lie: 16 hex digits.

    A SHA-256 over the parts' JSON files and, of each safetensors file, its size, its header and the
    first 4 KiB of every tensor, so that a few MB of 20 GB are read. Training changes every tensor;
    only a change that spares the first 4 KiB of all of them goes unseen. The same weights in other
    files are another model.

    Args:
        dtype: that the model computes in: of several variants of the weights, only the one that fits
            it counts; all of them without it.

    Raises:
        PermanentError: `model_incomplete`, a part has no JSON or safetensors file or one cannot be
            read.
    """
    digest = hashlib.sha256()
    for part in sorted(set(parts)):
        names = sorted(path.name for path in (folder / part).glob("*") if path.suffix in (".json", ".safetensors"))
        if dtype is not None and names:
            own = [f"{part}/{name}" for name in names]
            names = [name.removeprefix(f"{part}/") for name in needed_files(own, (part,), dtype)]
        if not names:
            raise PermanentError("model_incomplete", f"{folder / part} has neither a config.json nor weights")
        for name in names:
            _hash_file(digest, f"{part}/{name}", folder / part / name)
    return digest.hexdigest()[:FINGERPRINT_CHARS]


def _hash_file(digest: "hashlib._Hash", name: str, path: Path) -> None:
    digest.update(f"{name} {path.stat().st_size}\n".encode())
    try:
        if path.suffix == ".json":
            digest.update(path.read_bytes())
        else:
            _hash_weights(digest, path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PermanentError("model_incomplete", f"{path} cannot be read: {error}") from error


def _hash_weights(digest: "hashlib._Hash", path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        header = safetensors_header(file)
        digest.update(json.dumps(header, sort_keys=True).encode())
        start = file.tell()
        tensors = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        for begin, end in sorted(tensors.values()):
            file.seek(start + begin)
            digest.update(file.read(min(SAMPLED_BYTES, end - begin)))


def _from_bucket(source: str, parts: tuple[str, ...], open_bucket: OpenBucket, cache: Path) -> Path:
    name, _, prefix = source.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not name or not prefix:
        raise PermanentError("model_source_invalid", f"model.source {source!r} lacks a bucket or a prefix; {_FORMS}")
    bucket = open_bucket(name)
    folder = cache / f"{prefix.rsplit('/', 1)[-1]}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for part in (*ALWAYS, *parts):
            if not (folder / part).is_dir():
                _fetch_part(bucket, f"{prefix}/{part}", folder / part)
        if not (folder / INDEX).exists():
            write_atomically(folder / INDEX, _read_blocking(bucket, f"{prefix}/{INDEX}"))
    return folder


def _fetch_part(bucket: Bucket, prefix: str, target: Path) -> None:
    """Download beside the target and rename: a half-done download is never taken for a model."""
    _logger.info("downloading %s to %s", prefix, target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as temporary:
        part = Path(temporary) / target.name
        part.mkdir()
        bucket.download_prefix(prefix, part)
        part.rename(target)


def _read_blocking(bucket: Bucket, key: str) -> bytes:
    """Read an object from code that is not async, also where the thread's own event loop is running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(bucket.get(key))).result()


def _from_hub(source: str, revision: str | None, parts: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [INDEX, *(f"{part}/*" for part in (*ALWAYS, *parts))]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise PermanentError(
            "model_not_found", f"model.source {source!r}: no such folder and no such model on the hub; {_FORMS}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PermanentError(
            "model_not_found",
            f"model.source {source!r} could not be fetched from the hub ({error}); check the network, HF_TOKEN and "
            f"model.revision, or {_FORMS}",
        ) from error
