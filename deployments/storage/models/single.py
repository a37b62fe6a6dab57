"""Models of transformers that are no pipeline, with all their files in one folder: ESM2, language models."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.storage.models.bucket import FetchOptions
from deployments.storage.models.chosen_files import Source, folder_of_chosen, names_in_folder
from deployments.storage.models.file_hashes import HashRecord, check_hashes, known_hashes
from deployments.storage.models.hub import Hub, Pins
from deployments.storage.models.layout import CONFIG, FolderFiles, read_json, shard_tensors
from deployments.storage.models.store import HASHES, OpenBucket, default_cache
from deployments.storage.models.weight_files import CHECKSUMS, single_model_files

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", CHECKSUMS)
_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def single_model_folder(
    setting: str,
    model: Source,
    architectures: Iterable[str],
    dtype: DtypeName,
    open_bucket: OpenBucket,
    cache: Path | None = None,
    hub: Hub = Hub(),
    pins: Pins | None = None,
    options: FetchOptions = FetchOptions(),
) -> Path:
    """The local folder of a model, fetched first if it lies elsewhere, and checked. Blocks.

    Args:
        setting: that names the source, for errors: `proteins.source`.
        architectures: the classes that are supported, of which the model's config.json must name one.
        dtype: that it computes in: of several variants of the weights, the one that fits is taken.
        open_bucket: as `cache`, `hub`, `pins` and `options` of `models.store.model_folder`.

    Raises:
        PermanentError: as `model_folder` does.
        TransientError: as `model_folder` does.
    """
    cache = cache or default_cache()
    hashes = HashRecord(cache / HASHES)
    choose = choice_of_files(setting, model.source, dtype)
    folder = folder_of_chosen(setting, model, PATTERNS, choose, open_bucket, cache, hashes, hub, pins, options)
    check_single_model(setting, folder, architectures, dtype)
    check_hashes(folder, known_hashes(folder, choose(names_in_folder(setting, folder))), hashes)
    return folder


def choice_of_files(setting: str, source: str, dtype: DtypeName) -> Callable[[Sequence[str]], list[str]]:
    """Chooses of the names of a source's files those of the model. setting, dtype: as of `single_model_folder`.

    What it gives raises PermanentError `model_incomplete`, with the source.
    """

    def choose(names: Sequence[str]) -> list[str]:
        try:
            return single_model_files(names, dtype, keep=lambda name: name.endswith(_SUFFIXES))
        except PermanentError as error:
            raise PermanentError(error.code, f"{setting} {source!r}: {error.message}") from error

    return choose


def check_single_model(setting: str, folder: Path, architectures: Iterable[str], dtype: DtypeName) -> None:
    """Check by the JSON files and the headers of the weights that a folder has such a model, in milliseconds.

    Raises:
        PermanentError: `model_not_found`, `model_incomplete`, `model_unsupported`, with what was found.
    """
    names = single_model_files(names_in_folder(setting, folder), dtype)
    files = FolderFiles(folder)
    found = read_json(files, CONFIG).get("architectures") or []
    if not set(found) & set(architectures):
        named = ", ".join(map(str, found)) or "no class"
        raise PermanentError(
            "model_unsupported",
            f"{setting}: {folder / CONFIG} names {named} as `architectures`; supported is {' or '.join(architectures)}",
        )
    for name in names:
        if name.endswith(".safetensors"):
            shard_tensors(files, name)
