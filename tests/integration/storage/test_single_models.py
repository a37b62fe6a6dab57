"""A model in one folder, from a folder and from a real store: the one variant of its weights, whole or refused."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deployments.errors import PermanentError
from deployments.settings import LoraSettings
from deployments.storage.models.single import single_model_folder
from deployments.storage.object_store import ObjectStore

PREFIX = "models/esm"


def written(folder: Path) -> Path:
    """A model as transformers saves one, by its names."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["EsmForMaskedLM"]}))
    (folder / "vocab.txt").write_text("<cls>\n<pad>\n")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights, pickled")
    save_file({"weight": torch.ones(2, 2)}, folder / "model.safetensors")
    save_file({"weight": torch.ones(2, 2, dtype=torch.bfloat16)}, folder / "model.bf16.safetensors")
    return folder


async def brought(
    store: ObjectStore, source: str, cache: Path, supported: tuple[str, ...] = ("EsmForMaskedLM",)
) -> Path:
    model = LoraSettings(source=source)
    return await asyncio.to_thread(
        single_model_folder, "proteins.source", model, supported, "bfloat16", lambda _: store, cache
    )


async def test_the_variant_that_fits_and_the_text_are_fetched(object_store: ObjectStore, tmp_path: Path) -> None:
    local = written(tmp_path / "local")
    for path in local.iterdir():
        await object_store.put_file(f"{PREFIX}/{path.name}", path, "application/octet-stream")
    folder = await brought(object_store, f"s3://{object_store.bucket}/{PREFIX}", tmp_path / "cache")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names >= {"config.json", "vocab.txt", "model.bf16.safetensors"}
    assert not names & {"model.safetensors", "pytorch_model.bin"}
    assert (folder / "model.bf16.safetensors").read_bytes() == (local / "model.bf16.safetensors").read_bytes()
    assert await brought(object_store, str(local), tmp_path / "cache") == local


async def test_a_model_of_another_class_or_with_damaged_weights_is_refused(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    local = written(tmp_path / "local")
    with pytest.raises(PermanentError, match="names EsmForMaskedLM .* supported is GPT2LMHeadModel") as caught:
        await brought(object_store, str(local), tmp_path / "cache", ("GPT2LMHeadModel",))
    assert caught.value.code == "model_unsupported"
    weights = local / "model.bf16.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PermanentError, match=r"model\.bf16\.safetensors is damaged") as caught:
        await brought(object_store, str(local), tmp_path / "cache")
    assert caught.value.code == "model_incomplete"
    with pytest.raises(PermanentError, match="no such folder") as caught:
        await brought(object_store, str(tmp_path / "nowhere" / "at" / "all"), tmp_path / "cache")
    assert caught.value.code == "model_not_found"
