"""Whether the model can be served, told before anything is started: its layout, its place, and the cache for it.

The replicas check the same, and every tensor and checksum besides.
"""

import os
from pathlib import Path

from deployments.dtypes import Dtypes
from deployments.errors import PermanentError, StorageUnavailableError
from deployments.settings import ModelSettings, StorageSettings
from deployments.storage.bucket_models import BucketFiles
from deployments.storage.hub_models import Hub, check_hub
from deployments.storage.lora_files import check_lora_names, names_in_folder
from deployments.storage.model_layout import FolderFiles, check_layout
from deployments.storage.model_store import CACHE_VARIABLE, SourceKind, bucket_prefix, default_cache, source_kind
from deployments.storage.object_store import ObjectStore
from deployments.storage.weight_files import PARTS
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
                check_lora_names(name, lora, names_in_folder(name, Path(lora.source).expanduser()))
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


def _check_bucket(model: ModelSettings, dtypes: Dtypes, storage: StorageSettings) -> None:
    name, prefix = bucket_prefix(model.source)
    if storage.endpoint is None:
        return
    store = ObjectStore(storage.model_copy(update={"bucket": name}))
    try:
        check_layout(BucketFiles(model.source, store, prefix), PARTS, dtypes)
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
