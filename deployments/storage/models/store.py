"""Where model files come from: a folder, a prefix in the object store, or the Hugging Face hub."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from deployments.dtypes import DtypeName, Dtypes, WeightsName, part_dtype
from deployments.errors import PermanentError
from deployments.storage.models import positions
from deployments.storage.models.bucket import FetchOptions, fetch_model
from deployments.storage.models.file_hashes import HashRecord, check_hashes, known_hashes
from deployments.storage.models.hub import SETTING, Hub, Pins, fetch_from_hub
from deployments.storage.models.layout import FolderFiles, check_layout
from deployments.storage.models.safetensors_file import safetensors_header
from deployments.storage.models.weight_files import INDEX, needed_files
from deployments.storage.object_store import Bucket

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


class ModelChoice(Protocol):
    """Which model, and what it computes in; ModelSettings is one. See there."""

    @property
    def source(self) -> str: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def dtype(self) -> Dtypes: ...

    @property
    def hash_at_start(self) -> bool: ...


def model_folder(
    model: ModelChoice,
    parts: tuple[str, ...],
    open_bucket: OpenBucket,
    cache: Path | None = None,
    hub: Hub = Hub(),
    pins: Pins | None = None,
    options: FetchOptions = FetchOptions(),
) -> Path:
    """The local folder of the model with `parts`, fetched first if it lies elsewhere, and checked. Blocks.

    Args:
        model: `source` in one of three forms: folder, ``s3://bucket/prefix``, hub id (with
            `revision`).
        parts: subfolders needed, e.g. ``("tokenizer", "text_encoder")``; `model_index.json` and the
            scheduler always come along.
        open_bucket: gives the named bucket of the configured object store.
        cache: where s3 models are kept, and the hashes of large files; by default
            `MOCHI_SERVE_MODEL_CACHE` or the user's cache folder.
        hub: where hub models come from and are kept.
        pins: the commits of hub models without a revision; the newest one is taken each time without it.
        options: of models from the object store.

    Raises:
        PermanentError: `model_not_found`, `model_source_invalid`, `model_incomplete`, `model_unsupported`,
            `object_missing` or `cache_unusable`.
        TransientError: `model_changed`, it is being changed in the object store; StorageUnavailableError, that
            could not be reached.
    """
    source, needed = model.source, (*ALWAYS, *parts)
    cache = cache or default_cache()
    hashes = HashRecord(cache / HASHES, again=model.hash_at_start)
    kind = source_kind(source)
    if kind is SourceKind.BUCKET:
        bucket, prefix = bucket_prefix(source)
        folder = fetch_model(source, open_bucket(bucket), prefix, needed, model.dtype, cache, hashes, options)
    elif kind is SourceKind.HUB:
        folder = fetch_from_hub(source, model.revision, needed, model.dtype, hub, pins)
    else:
        folder = Path(source).expanduser()
    files = FolderFiles(folder)
    check_layout(files, needed, model.dtype)
    check_hashes(folder, known_hashes(folder, needed_files(files.sizes, needed, model.dtype)), hashes)
    return folder


class SourceKind(StrEnum):
    """Where a model lies."""

    FOLDER = "folder"
    BUCKET = "bucket"
    HUB = "hub"


def source_kind(source: str, setting: str = SETTING) -> SourceKind:
    """Of which form a source is.

    Args:
        setting: that names it, for errors.

    Raises:
        PermanentError: `model_not_found`, it is a path with nothing there; `model_source_invalid`.
    """
    local = Path(source).expanduser()
    if source.startswith("s3://"):
        bucket_prefix(source, setting)
        return SourceKind.BUCKET
    if local.exists():
        return SourceKind.FOLDER
    if looks_like_path(source):
        raise PermanentError("model_not_found", f"{setting} {source!r}: no such folder ({local.absolute()}); {_FORMS}")
    if not _HUB_ID.fullmatch(source):
        raise PermanentError("model_source_invalid", f"{setting} {source!r} is not understood; {_FORMS}")
    return SourceKind.HUB


def source_revision(source: str, folder: Path) -> str | None:
    """Which state of its source a model is, for people: the hub's commit, or a name for what is in the bucket.

    Args:
        folder: that `model_folder` gave.
    """
    return None if source_kind(source) is SourceKind.FOLDER else folder.name


def bucket_prefix(source: str, setting: str = SETTING) -> tuple[str, str]:
    """The bucket of ``s3://bucket/prefix``, and the prefix without slashes around it. setting: see `source_kind`.

    Raises:
        PermanentError: `model_source_invalid`, one of them is empty.
    """
    name, _, prefix = source.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not name or not prefix:
        raise PermanentError("model_source_invalid", f"{setting} {source!r} lacks a bucket or a prefix; {_FORMS}")
    return name, prefix


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


def zeroes_empty_prompt(folder: Path, setting: bool | None) -> bool:
    """Whether an empty prompt is no token at all: by `model.zero_empty_prompt`, else by the model's `model_index.json`.

    Mochi 1 was trained so, and its authors' code encodes so; diffusers does it for models that say
    `force_zeros_for_empty_prompt`, which the published Mochi 1 does not.

    Raises:
        PermanentError: `model_incomplete`, as `read_index` does.
    """
    return bool(read_index(folder).get("force_zeros_for_empty_prompt", False)) if setting is None else setting


def model_fingerprint(
    folder: Path, parts: tuple[str, ...], dtypes: Dtypes | None = None, weights: WeightsName | None = None
) -> str:
    """A short name for exactly these parts of a model, the same wherever the files lie: 16 hex digits.

    A SHA-256 over the parts' JSON files and, of each safetensors file, its size, its header and the
    first 4 KiB of every tensor, so that a few MB of 20 GB are read. Training changes every tensor;
    only a change that spares the first 4 KiB of all of them goes unseen. The same weights in other
    files are another model.

    Args:
        dtypes: that the parts compute in: of several variants of the weights, only the one that fits
            counts; all of them without it.
        weights: the form of 8 bits that those of the transformer are kept in, if that is one of the parts.

    Raises:
        PermanentError: `model_incomplete`, a part has no JSON or safetensors file or one cannot be
            read.
    """
    digest = hashlib.sha256()
    for part in sorted(set(parts)):
        names = sorted(path.name for path in (folder / part).glob("*") if path.suffix in (".json", ".safetensors"))
        if dtypes is not None and names:
            own = [f"{part}/{name}" for name in names]
            names = [name.removeprefix(f"{part}/") for name in needed_files(own, (part,), dtypes)]
        if not names:
            raise PermanentError("model_incomplete", f"{folder / part} has neither a config.json nor weights")
        for name in names:
            _hash_file(digest, f"{part}/{name}", folder / part / name)
        if part == positions.PART and dtypes is not None:
            _hash_positions(digest, folder, part_dtype(dtypes, part))
    if weights is not None and positions.PART in parts:
        digest.update(f"weights {weights}\n".encode())
    return digest.hexdigest()[:FINGERPRINT_CHARS]


def _hash_positions(digest: "hashlib._Hash", folder: Path, dtype: DtypeName) -> None:
    """Where they come from beside the weights that count, they are part of the model."""
    exact = positions.exact_positions(FolderFiles(folder), dtype)
    if exact is not None:
        digest.update(f"{positions.TENSOR} {exact.sha256}\n".encode())


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
