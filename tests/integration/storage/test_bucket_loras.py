"""LoRAs from a real object store: fetched, put on a transformer, refused where they are none or were changed."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import full_size as fs
from deployments.errors import PermanentError
from deployments.messages import LoraChoice
from deployments.mochi.loras import Loras
from deployments.settings import LoraSettings
from deployments.storage.models.lora_files import CONFIG, WEIGHTS, LoraFiles, lora_files
from deployments.storage.models.weight_files import CHECKSUMS
from deployments.storage.object_store import ObjectStore
from tests.support.workers.loras import peft_lora

PREFIX = "loras/ink"
FILE = WEIGHTS[1]
LAYER = "transformer_blocks.0.attn1.to_q"


def tiny() -> Any:
    """Each call gives the same weights."""
    return fs.random_transformer(torch.device("cpu"), torch.float32, **fs.TINY)


async def uploaded(store: ObjectStore, folder: Path, names: Sequence[str] = (FILE, CONFIG)) -> None:
    for name in names:
        await store.put_file(f"{PREFIX}/{name}", folder / name, "application/octet-stream")


async def fetched(store: ObjectStore, cache: Path, prefix: str = PREFIX) -> LoraFiles:
    settings = LoraSettings(source=f"s3://{store.bucket}/{prefix}")
    return await asyncio.to_thread(lora_files, "ink", settings, lambda _: store, cache)


def output(files: LoraFiles, scale: float = 1.0) -> torch.Tensor:
    """Of one layer that the LoRA changes."""
    transformer = tiny()
    with torch.no_grad(), Loras(transformer, {"ink": files}).applied(LoraChoice("ink", scale)):
        layer = transformer.get_submodule(LAYER)
        result: torch.Tensor = layer(torch.ones(1, fs.TINY["num_attention_heads"] * fs.TINY["attention_head_dim"]))
    return result


async def test_one_is_fetched_and_changes_the_model_as_from_a_folder(object_store: ObjectStore, tmp_path: Path) -> None:
    local = peft_lora(tmp_path / "local", tiny(), 1)
    (tmp_path / "local" / "sample.mp4").write_bytes(b"a video")
    await uploaded(object_store, tmp_path / "local", (FILE, CONFIG, "sample.mp4"))
    files = await fetched(object_store, tmp_path / "cache")
    assert files.config is not None
    assert files.weights.read_bytes() == local.weights.read_bytes()
    assert not list((tmp_path / "cache").rglob("*.mp4"))
    assert torch.equal(output(files), output(local))
    assert not torch.equal(output(files), output(files, scale=0.5))
    loras = Loras(tiny(), {"ink": files})
    told = "chalk is not served any more; served are ink"
    with pytest.raises(PermanentError, match=told) as caught, loras.applied(LoraChoice("chalk", 1.0)):
        pass
    assert caught.value.code == "lora_unknown"


async def test_other_bytes_are_fetched_and_go_by_another_name(object_store: ObjectStore, tmp_path: Path) -> None:
    """What waits with the digest of the first is then made again; what is damaged here is fetched again."""
    peft_lora(tmp_path / "local", tiny(), 1)
    await uploaded(object_store, tmp_path / "local")
    first = await fetched(object_store, tmp_path / "cache")
    weights, before = first.weights.read_bytes(), output(first)
    first.weights.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    again = await fetched(object_store, tmp_path / "cache")
    assert again.weights.read_bytes() == weights and again.digest == first.digest
    peft_lora(tmp_path / "newer", tiny(), 2)
    await uploaded(object_store, tmp_path / "newer")
    newer = await fetched(object_store, tmp_path / "cache")
    assert newer.digest != first.digest
    assert not torch.equal(output(newer), before)


async def test_bytes_that_differ_from_the_list_beside_them_are_refused(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    folder = tmp_path / "local"
    peft_lora(folder, tiny(), 1)
    listed = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    (folder / CHECKSUMS).write_text(f"{listed}  {FILE}\n")
    await uploaded(object_store, folder, (FILE, CONFIG, CHECKSUMS))
    await fetched(object_store, tmp_path / "cache")
    peft_lora(tmp_path / "newer", tiny(), 2)
    await uploaded(object_store, tmp_path / "newer")
    with pytest.raises(PermanentError, match=f"{FILE} is damaged"):
        await fetched(object_store, tmp_path / "cache")


async def test_a_prefix_that_has_none_is_told(object_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="there is nothing under s3://") as caught:
        await fetched(object_store, tmp_path, "loras/chalk")
    assert caught.value.code == "object_missing"
