"""Where a model may come from, and what is said when it does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.messages import Stage
from deployments.settings import ModelSettings
from deployments.storage.models.store import (
    CACHE_VARIABLE,
    default_cache,
    looks_like_path,
    model_fingerprint,
    model_folder,
    read_index,
    source_revision,
)
from tests.support.workers.fakes import SHAPES, worker_settings
from tests.support.workers.memory_store import MemoryStore
from tests.support.workers.published_model import published_model

PARTS = ("transformer",)
DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")


def model(source: str | Path, revision: str | None = None) -> ModelSettings:
    return worker_settings(Stage.SAMPLING).model.model_copy(update={"source": str(source), "revision": revision})


def no_bucket(name: str) -> MemoryStore:
    raise AssertionError(f"bucket {name} was opened")


def uploaded(prefix: str) -> MemoryStore:
    store = MemoryStore()
    for path in SHAPES.rglob("*"):
        if path.is_file():
            store.objects[f"{prefix}/{path.relative_to(SHAPES)}"] = path.read_bytes()
    return store


def test_a_folder_is_used_as_it_is() -> None:
    assert model_folder(model(SHAPES), PARTS, no_bucket) == SHAPES


def test_a_relative_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHAPES.parent)
    assert model_folder(model("shapes"), PARTS, no_bucket) == Path("shapes")


@pytest.mark.parametrize("source", ["./nothing", "/no/such/folder", "nothing", "models/shapez", "a/b/c"])
def test_an_unknown_folder_names_the_allowed_forms(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHAPES.parent.parent)
    with pytest.raises(PermanentError, match=r"no such folder .*a folder .*s3://bucket/prefix .*a hub id") as caught:
        model_folder(model(source), PARTS, no_bucket)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("source", ["genmo/mochi 1!", "s3://bucket", "s3:///prefix"])
def test_a_source_of_no_form_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="s3://bucket/prefix") as caught:
        model_folder(model(source), PARTS, no_bucket, tmp_path)
    assert caught.value.code == "model_source_invalid"


def test_hub_ids_do_not_look_like_paths() -> None:
    assert not looks_like_path("genmo/mochi-1-preview")
    assert looks_like_path(str(SHAPES))


def test_a_changed_byte_of_a_folder_with_checksums_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHAPES, tmp_path / "m"))
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PermanentError, match=rf"{path} is damaged: its SHA-256") as caught:
        model_folder(model(folder), PARTS, no_bucket)
    assert caught.value.code == "model_incomplete"
    assert model_folder(model(folder), ("vae",), no_bucket) == folder  # what is not used is not read
    (folder / "SHA256SUMS").unlink()
    assert model_folder(model(folder), PARTS, no_bucket) == folder


def test_a_folder_with_both_variants_is_the_model_that_is_loaded(tmp_path: Path) -> None:
    """So it is the same model as a folder with that variant alone."""
    folder = published_model(tmp_path)
    both = {name: model_fingerprint(folder, PARTS, name) for name in DTYPES}
    for path in folder.glob("transformer/*bf16*"):
        path.unlink()
    assert both["float32"] == model_fingerprint(folder, PARTS, "float32") == model_fingerprint(folder, PARTS)
    assert len(set(both.values())) == 2


def test_an_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    shutil.copytree(SHAPES, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "vae")
    with pytest.raises(PermanentError, match="lacks vae") as caught:
        model_folder(model(tmp_path / "m"), ("vae",), no_bucket)
    assert caught.value.code == "model_incomplete"


async def test_s3_brings_only_the_parts(tmp_path: Path) -> None:
    """Inside a running loop, as a replica's constructor is."""
    store = uploaded("models/shapes")
    opened: list[str] = []

    def open_bucket(name: str) -> MemoryStore:
        opened.append(name)
        return store

    folder = model_folder(model("s3://videos/models/shapes"), PARTS, open_bucket, tmp_path)
    assert opened == ["videos"]
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (folder / weights).read_bytes() == (SHAPES / weights).read_bytes()
    assert read_index(folder) == read_index(SHAPES)
    assert not (folder / "vae").exists()
    assert model_folder(model("s3://videos/models/shapes"), PARTS, open_bucket, tmp_path) == folder
    assert source_revision("s3://videos/models/shapes", folder) == folder.name != "transformer"
    assert source_revision("genmo/mochi-1-preview", tmp_path / "snapshots" / "abc") == "abc"
    assert source_revision(str(SHAPES), SHAPES) is None


def test_a_byte_changed_in_the_store_is_refused_by_the_list_of_checksums(tmp_path: Path) -> None:
    store = uploaded("m")
    data = bytearray(store.objects["m/transformer/diffusion_pytorch_model.safetensors"])
    data[-1] ^= 1
    store.objects["m/transformer/diffusion_pytorch_model.safetensors"] = bytes(data)
    with pytest.raises(PermanentError, match="diffusion_pytorch_model.safetensors is damaged: its SHA-256"):
        model_folder(model("s3://b/m"), PARTS, lambda name: store, tmp_path)


def test_nothing_in_the_bucket(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="nothing under s3://b/m") as caught:
        model_folder(model("s3://b/m"), PARTS, lambda name: MemoryStore(), tmp_path)
    assert caught.value.code == "object_missing"


def test_the_cache_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert default_cache() == tmp_path / "mochi-serve" / "models"
    monkeypatch.setenv(CACHE_VARIABLE, "/models")
    assert default_cache() == Path("/models")


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_broken_index_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(PermanentError, match=r"model_index\.json"):
        read_index(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"a": 1}))
    assert read_index(tmp_path) == {"a": 1}


def a_part(folder: Path, **tensors: torch.Tensor) -> Path:
    """A model of one part, `transformer`."""
    part = folder / "transformer"
    part.mkdir(parents=True)
    (part / "config.json").write_text('{"num_layers": 4}')
    save_file({"a": torch.arange(9000.0), "b": torch.ones(3)} | tensors, part / "model.safetensors")
    return folder


def test_a_fingerprint_is_the_same_wherever_the_files_lie(tmp_path: Path) -> None:
    shutil.copytree(SHAPES / "transformer", tmp_path / "transformer")
    name = model_fingerprint(SHAPES, PARTS)
    assert model_fingerprint(tmp_path, PARTS) == model_fingerprint(SHAPES, PARTS) == name
    assert len(name) == 16 and int(name, 16) >= 0
    (tmp_path / "transformer" / "README.md").write_text("told of, not part of it")
    assert model_fingerprint(tmp_path, PARTS) == name


def test_a_fingerprint_is_of_its_parts_in_any_order() -> None:
    both = model_fingerprint(SHAPES, ("transformer", "vae"))
    assert both == model_fingerprint(SHAPES, ("vae", "transformer", "vae"))
    assert len({both, model_fingerprint(SHAPES, ("vae",)), model_fingerprint(SHAPES, PARTS)}) == 3


def test_weights_of_8_bits_make_another_transformer() -> None:
    names = [model_fingerprint(SHAPES, PARTS, "float32", weights) for weights in (None, "int8", "fp8")]
    assert names[0] == model_fingerprint(SHAPES, PARTS, "float32") and len(set(names)) == 3
    assert model_fingerprint(SHAPES, ("vae",), "float32", "int8") == model_fingerprint(SHAPES, ("vae",), "float32")


def test_a_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    first = model_fingerprint(a_part(tmp_path / "0"), PARTS)
    others = [
        a_part(tmp_path / "values", a=torch.arange(9000.0) + 1),
        a_part(tmp_path / "last", b=torch.tensor([1.0, 1.0, 1.0000001])),
        a_part(tmp_path / "names", c=torch.ones(3)),
        a_part(tmp_path / "layout", a=torch.arange(9000.0).view(90, 100)),
        a_part(tmp_path / "dtype", b=torch.ones(3, dtype=torch.bfloat16)),
        a_part(tmp_path / "config"),
    ]
    (others[-1] / "transformer" / "config.json").write_text('{"num_layers": 5}')
    names = [model_fingerprint(folder, PARTS) for folder in others]
    assert len({first, *names}) == 7
    assert model_fingerprint(a_part(tmp_path / "again"), PARTS) == first


def test_a_change_in_any_one_tensor_of_the_included_model_is_seen(tmp_path: Path) -> None:
    names = {model_fingerprint(SHAPES, PARTS)}
    file = "transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(SHAPES / file)
    for number, tensor in enumerate(list(weights.values())[:12]):
        (tmp_path / str(number) / "transformer").mkdir(parents=True)
        shutil.copy(SHAPES / "transformer" / "config.json", tmp_path / str(number) / "transformer")
        tensor.mul_(1.02)
        save_file(weights, tmp_path / str(number) / file)
        names.add(model_fingerprint(tmp_path / str(number), PARTS))
    assert len(names) == 13


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    """64 GB, all of it a hole: reading it whole would take longer than the test may."""
    folder = a_part(tmp_path)
    header = {"w": {"dtype": "U8", "shape": [64 << 30], "data_offsets": [0, 64 << 30]}}
    text = json.dumps(header).encode()
    with (folder / "transformer" / "large.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (64 << 30))
    assert len(model_fingerprint(folder, PARTS)) == 16


@pytest.mark.parametrize("damaged", [b"", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 20, b"\x03\0\0\0\0\0\0\0{ab"])
def test_damaged_weights_have_no_fingerprint(damaged: bytes, tmp_path: Path) -> None:
    folder = a_part(tmp_path)
    (folder / "transformer" / "model.safetensors").write_bytes(damaged)
    with pytest.raises(PermanentError, match=r"model\.safetensors cannot be read") as caught:
        model_fingerprint(folder, PARTS)
    assert caught.value.code == "model_incomplete"


def test_a_part_that_is_not_there_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="vae has neither"):
        model_fingerprint(tmp_path, ("vae",))
