"""Some files of a source: a folder, a prefix in the object store, or the Hugging Face hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from deployments.errors import PermanentError
from deployments.storage.models.bucket import FetchOptions, fetch_files
from deployments.storage.models.file_hashes import HashRecord
from deployments.storage.models.hub import Hub, Pins, fetch_files_from_hub
from deployments.storage.models.store import OpenBucket, SourceKind, bucket_prefix, source_kind


class Source(Protocol):
    """Which files; `ProteinSettings` and `LoraSettings` are two. See there."""

    @property
    def source(self) -> str: ...

    @property
    def revision(self) -> str | None: ...


def folder_of_chosen(
    setting: str,
    files: Source,
    patterns: Sequence[str],
    choose: Callable[[Sequence[str]], Sequence[str]],
    open_bucket: OpenBucket,
    cache: Path,
    hashes: HashRecord,
    hub: Hub = Hub(),
    pins: Pins | None = None,
    options: FetchOptions = FetchOptions(),
) -> Path:
    """The local folder with the chosen files, fetched first if they lie elsewhere. Blocks.

    Args:
        setting: that names the source, for errors.
        patterns: of the names that are looked at on the hub.
        choose: of the names of the files at the top of the source, those that are needed; what it raises comes out.
        open_bucket: as `cache`, `hub`, `pins` and `options` of `models.store.model_folder`.
        hashes: of files that were fetched before.

    Raises:
        PermanentError, TransientError: as `model_folder` does.
    """
    source = files.source

    def choose_at_top(names: Sequence[str]) -> Sequence[str]:
        return choose([name for name in names if "/" not in name])

    kind = source_kind(source, setting)
    if kind is SourceKind.BUCKET:
        bucket, prefix = bucket_prefix(source, setting)
        return fetch_files(source, open_bucket(bucket), prefix, choose_at_top, cache, hashes, options)
    if kind is SourceKind.HUB:
        return fetch_files_from_hub(source, files.revision, patterns, choose_at_top, hub, pins, setting)
    return Path(source).expanduser()


def names_in_folder(setting: str, folder: Path) -> list[str]:
    """The files of a folder. setting: that names it. Raises PermanentError `model_not_found`: it cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise PermanentError(
            "model_not_found", f"{setting}: {folder} cannot be read as a folder ({error.strerror})"
        ) from error
