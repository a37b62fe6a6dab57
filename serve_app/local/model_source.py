"""Whether the model can be served, told before anything is started: its layout, its place, and the cache for it.

The replicas check the same, and every tensor and checksum besides.
"""

import os
from collections.abc import Callable
from pathlib import Path

from deployments.dtypes import Dtypes
from deployments.embedder.settings import ARCHITECTURES, SETTING, ProteinSettings
from deployments.errors import PermanentError, StorageUnavailableError
from deployments.settings import ModelSettings, StorageSettings
from deployments.storage.models.bucket import BucketFiles
from deployments.storage.models.chosen_files import names_in_folder
from deployments.storage.models.hub import SETTING as MODEL_SETTING
from deployments.storage.models.hub import Hub, check_files_on_hub, check_hub
from deployments.storage.models.layout import FolderFiles, check_layout
from deployments.storage.models.lora_files import check_lora_names
from deployments.storage.models.single import PATTERNS, check_single_model, choice_of_files
from deployments.storage.models.store import CACHE_VARIABLE, SourceKind, bucket_prefix, default_cache, source_kind
from deployments.storage.models.weight_files import PARTS
from deployments.storage.object_store import ObjectStore
from serve_app.errors import ConfigError, StartupError


def check_model_source(model: ModelSettings, dtypes: Dtypes) -> None:
    """Check the form of `model.source`, and of a folder that it is a whole Mochi pipeline; likewise those of LoRAs.

    Args:
        dtypes: that its parts compute in.

    Raises:
        ConfigError: one line with the path, what was found and what is expected.
    """
    try:
        if source_kind(model.source) is SourceKind.FOLDER:
            check_layout(FolderFiles(Path(model.source).expanduser()), PARTS, dtypes)
        for name, lora in model.loras.items():
            if source_kind(lora.source, f"model.loras.{name}.source") is SourceKind.FOLDER:
                check_lora_names(name, lora, names_in_folder(f"model.loras.{name}", Path(lora.source).expanduser()))
    except PermanentError as error:
        raise ConfigError(error.message) from error


def check_model_place(
    model: ModelSettings, dtypes: Dtypes, storage: StorageSettings, hub: Hub = Hub(), cache: Path | None = None
) -> None:
    """Check a model in the object store or on the hub, and the cache for it. A store that is away is waited for later.

    Args:
        dtypes: that its parts compute in.
        storage: a store that the server starts itself is not there yet: what is in it is checked by the replicas.

    Raises:
        StartupError: one line with the place or the folder, and what to do.
    """
    kind = source_kind(model.source)
    try:
        if kind is SourceKind.HUB:
            _check_writable(hub.folder, "HF_HOME")
            check_hub(model.source, model.revision, PARTS, dtypes, hub)
        elif kind is SourceKind.BUCKET:
            _check_writable(cache or default_cache(), CACHE_VARIABLE)
            _check_bucket(model, dtypes, storage)
    except PermanentError as error:
        raise StartupError(error.message) from error


def check_protein_source(proteins: ProteinSettings) -> None:
    """Check the form of `proteins.source`, and of a folder that it is an ESM2 model. Raises ConfigError."""
    try:
        if source_kind(proteins.source, SETTING) is SourceKind.FOLDER:
            check_single_model(SETTING, Path(proteins.source).expanduser(), ARCHITECTURES, proteins.dtype)
    except PermanentError as error:
        raise ConfigError(error.message) from error


def check_protein_place(
    proteins: ProteinSettings, storage: StorageSettings, hub: Hub = Hub(), cache: Path | None = None
) -> None:
    """Check an ESM2 model in the object store or on the hub, and the cache for it, as `check_model_place` does.

    Raises:
        StartupError: one line with the place or the folder, and what to do.
    """
    source = proteins.source
    kind = source_kind(source, SETTING)
    choose = choice_of_files(SETTING, source, proteins.dtype)
    try:
        if kind is SourceKind.HUB:
            _check_writable(hub.folder, "HF_HOME")
            check_files_on_hub(source, proteins.revision, PATTERNS, choose, hub, SETTING)
        elif kind is SourceKind.BUCKET:
            _check_writable(cache or default_cache(), CACHE_VARIABLE)
            _check_in_store(
                source, storage, lambda files: choose([name for name in files.sizes if "/" not in name]), SETTING
            )
    except PermanentError as error:
        raise StartupError(error.message) from error


def _check_bucket(model: ModelSettings, dtypes: Dtypes, storage: StorageSettings) -> None:
    _check_in_store(model.source, storage, lambda files: check_layout(files, PARTS, dtypes))


def _check_in_store(
    source: str, storage: StorageSettings, check: Callable[[BucketFiles], object], setting: str = MODEL_SETTING
) -> None:
    """Check the files of a model in the object store; not where that is away, or started by this server."""
    name, prefix = bucket_prefix(source, setting)
    if storage.endpoint is None:
        return
    store = ObjectStore(storage.model_copy(update={"bucket": name}))
    try:
        check(BucketFiles(source, store, prefix))
    except StorageUnavailableError:
        return
    finally:
        store.close()


def _check_writable(folder: Path, variable: str) -> None:
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"the cache of models {folder} cannot be written ({error.strerror}); mend it, or name another folder with "
            f"the environment variable {variable}"
        ) from error
