"""Where the weights of a LoRA come from, as a model's do: a folder, a prefix in the object store, or the hub."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deployments.errors import PermanentError
from deployments.storage.models.chosen_files import Source, folder_of_chosen, names_in_folder
from deployments.storage.models.file_hashes import HashRecord, check_hashes, known_hashes
from deployments.storage.models.hub import Hub, Pins
from deployments.storage.models.store import FINGERPRINT_CHARS, HASHES, OpenBucket, default_cache
from deployments.storage.models.weight_files import CHECKSUMS

WEIGHTS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""As diffusers and peft call the file."""
CONFIG = "adapter_config.json"
"""Peft's, beside the weights; others have theirs in the header of the weights, or none."""
_SUFFIX = ".safetensors"


class LoraSource(Source, Protocol):
    """Which weights; LoraSettings is one. See there."""

    @property
    def weight_name(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class LoraFiles:
    """The files of a LoRA, on this machine."""

    weights: Path
    config: Path | None  # peft's configuration, if it is a file of its own
    digest: str
    """A name for what is in them: the same wherever they came from, another one if a byte of them differs."""


def lora_files(
    name: str,
    lora: LoraSource,
    open_bucket: OpenBucket,
    cache: Path | None = None,
    hub: Hub = Hub(),
    pins: Pins | None = None,
    hash_again: bool = False,
) -> LoraFiles:
    """The files of a LoRA, fetched first if they lie elsewhere, and checked against known SHA-256. Blocks.

    Args:
        name: of the LoRA, for errors.
        open_bucket: as `cache`, `hub` and `pins` of `model_folder`.
        hash_again: whether files that seem unchanged are hashed again, see `hash_at_start`.

    Raises:
        PermanentError: as `model_folder` does; `lora_unusable`, it is not told which file of the source is meant.
        TransientError: as `model_folder` does.
    """
    cache = cache or default_cache()
    hashes = HashRecord(cache / HASHES, again=hash_again)
    setting = f"model.loras.{name}"

    def choose(names: Sequence[str]) -> list[str]:
        return _needed(name, lora, names)

    patterns = [f"*{_SUFFIX}", CONFIG, CHECKSUMS]
    folder = folder_of_chosen(f"{setting}.source", lora, patterns, choose, open_bucket, cache, hashes, hub, pins)
    names = choose(names_in_folder(setting, folder))
    check_hashes(folder, known_hashes(folder, names), hashes)
    weights, *more = names
    config = folder / CONFIG if CONFIG in more else None
    return LoraFiles(folder / weights, config, _digest(folder / weights, config, hashes))


def check_lora_names(name: str, lora: LoraSource, names: Iterable[str]) -> None:
    """Check that a source with these files has the weights. Raises PermanentError `lora_unusable`."""
    _needed(name, lora, [each for each in names if "/" not in each])


def _needed(name: str, lora: LoraSource, names: Sequence[str]) -> list[str]:
    """The weights, and behind them what belongs to them. names: of all files at the top."""
    found = sorted(each for each in names if each.endswith(_SUFFIX))
    wanted = [lora.weight_name] if lora.weight_name else [*WEIGHTS, *(found if len(found) == 1 else [])]
    weights = next((each for each in wanted if each in found), None)
    if weights is None:
        listed = ", ".join(found[:6]) or f"no {_SUFFIX}"
        what = f"lacks {lora.weight_name}" if lora.weight_name else "has no file that is known by its name"
        raise PermanentError(
            "lora_unusable",
            f"model.loras.{name}: {lora.source} {what}; it has {listed}. Name one as model.loras.{name}.weight_name",
        )
    return [weights, *(each for each in (CONFIG, CHECKSUMS) if each in names)]


def _digest(weights: Path, config: Path | None, hashes: HashRecord) -> str:
    digest = hashlib.sha256()
    try:
        for path in filter(None, (weights, config)):
            digest.update(f"{hashes.sha256(path)}\n".encode())
    except OSError as error:
        raise PermanentError("lora_unusable", f"{error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:FINGERPRINT_CHARS]
