"""Where the files of a LoRA come from, which ones they are, and what names their contents."""

from pathlib import Path

import pytest

from deployments.errors import PermanentError
from deployments.settings import LoraSettings
from deployments.storage.models.lora_files import LoraFiles, lora_files
from tests.support.workers.memory_store import MemoryStore

DIFFUSERS, PEFT, CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"


def no_bucket(name: str) -> MemoryStore:
    raise AssertionError(f"bucket {name} was opened")


def folder_with(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(f"the contents of {name}".encode())
    return folder


def found(folder: Path, weight_name: str | None = None) -> LoraFiles:
    settings = LoraSettings(source=str(folder), weight_name=weight_name)
    return lora_files("ink", settings, no_bucket, cache=folder / "cache")


def bucket_with(**files: bytes) -> MemoryStore:
    store = MemoryStore()
    for name, data in files.items():
        store.add(f"loras/ink/{name.replace('__', '.')}", data, "")
    return store


def fetched(store: MemoryStore, cache: Path) -> LoraFiles:
    return lora_files("ink", LoraSettings(source="s3://models/loras/ink"), lambda name: store, cache)


@pytest.mark.parametrize(
    ("names", "weight_name", "taken", "config"),
    [
        ((DIFFUSERS,), None, DIFFUSERS, False),
        ((PEFT, CONFIG, "README.md"), None, PEFT, True),
        (("ink-v2.safetensors", "ink.png"), None, "ink-v2.safetensors", False),
        ((DIFFUSERS, "ink-v2.safetensors"), None, DIFFUSERS, False),
        ((DIFFUSERS, "ink-v2.safetensors"), "ink-v2.safetensors", "ink-v2.safetensors", False),
    ],
)
def test_the_file_is_known_by_its_name(
    names: tuple[str, ...], weight_name: str | None, taken: str, config: bool, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, *names)
    files = found(folder, weight_name)
    assert files.weights == folder / taken
    assert files.config == (folder / CONFIG if config else None)


@pytest.mark.parametrize(
    ("names", "weight_name", "said"),
    [
        (
            ("a.safetensors", "b.safetensors"),
            None,
            "has no file that is known by its name; it has a.safetensors, b.safet",
        ),
        (("weights.bin",), None, "it has no .safetensors. Name one as model.loras.ink.weight_name"),
        ((DIFFUSERS,), "a.safetensors", f"lacks a.safetensors; it has {DIFFUSERS}"),
    ],
)
def test_where_it_is_not_known_the_files_are_listed(
    names: tuple[str, ...], weight_name: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(PermanentError, match="model.loras.ink") as caught:
        found(folder_with(tmp_path, *names), weight_name)
    assert caught.value.code == "lora_unusable" and said in caught.value.message


@pytest.mark.parametrize(
    ("source", "code"), [("./nothing", "model_not_found"), ("s3://models", "model_source_invalid")]
)
def test_a_source_that_is_none_is_told_by_its_setting(source: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"model\.loras\.ink\.source ") as caught:
        lora_files("ink", LoraSettings(source=source), no_bucket, tmp_path)
    assert caught.value.code == code


def test_the_digest_names_the_contents_wherever_they_lie(tmp_path: Path) -> None:
    first, again = (found(folder_with(tmp_path / name, PEFT, CONFIG)) for name in ("one", "two"))
    assert first.digest == again.digest
    (tmp_path / "two" / CONFIG).write_bytes(b"another alpha")
    (tmp_path / "one" / PEFT).write_bytes(b"other weights")
    assert len({first.digest, found(tmp_path / "one").digest, found(tmp_path / "two").digest}) == 3


def test_a_prefix_of_the_object_store_is_fetched_without_the_rest(tmp_path: Path) -> None:
    weights, config = b"the contents of " + PEFT.encode(), b"the contents of " + CONFIG.encode()
    store = bucket_with(adapter_model__safetensors=weights, adapter_config__json=config, sample__mp4=b"a video")
    files = fetched(store, tmp_path)
    assert files.weights.read_bytes() == weights
    assert files.config is not None and files.config.read_bytes() == config
    assert [path.name for path in files.weights.parent.iterdir() if path.name.endswith("mp4")] == []
    assert files.digest == found(folder_with(tmp_path / "folder", PEFT, CONFIG)).digest
    files.weights.write_bytes(b"damaged")  # what is kept is looked at again
    assert fetched(store, tmp_path).weights.read_bytes() == weights
    store.add(f"loras/ink/{PEFT}", b"other weights", "")
    newer = fetched(store, tmp_path)
    assert newer.weights.read_bytes() == b"other weights" and newer.digest != files.digest


def test_a_prefix_with_nothing_known_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="it has no .safetensors"):
        fetched(bucket_with(notes__txt=b"x"), tmp_path)
    with pytest.raises(PermanentError, match="there is nothing under s3://models/loras/ink"):
        fetched(MemoryStore(), tmp_path)


def test_a_file_that_differs_from_its_listed_hash_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, DIFFUSERS)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  {DIFFUSERS}\n")
    with pytest.raises(PermanentError, match=f"{DIFFUSERS} is damaged"):
        found(folder)
