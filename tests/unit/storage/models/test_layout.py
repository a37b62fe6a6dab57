"""Folders that are a Mochi pipeline of diffusers, and those that are something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.storage.models.layout import FolderFiles, check_layout
from deployments.storage.models.weight_files import PARTS
from tests.support.workers.fakes import SHAPES
from tests.support.workers.published_model import INDEX_FORMS, published_model

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def refusal(folder: Path, dtype: DtypeName = "float32") -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        check_layout(FolderFiles(folder), PARTS, dtype)
    assert "\n" not in caught.value.message and str(folder) in caught.value.message
    return caught.value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", INDEX_FORMS)
def test_the_published_layout_is_a_pipeline(dtype: DtypeName, form: str, tmp_path: Path) -> None:
    check_layout(FolderFiles(published_model(tmp_path, form)), PARTS, dtype)
    check_layout(FolderFiles(SHAPES), PARTS, dtype)


def _gguf(folder: Path) -> None:
    (folder / "mochi-Q4_0.gguf").write_bytes(b"GGUF")


def _single_file(folder: Path) -> None:
    save_file({"x_embedder.proj.weight": torch.zeros(2)}, folder / "dit.safetensors")


def _fp8(folder: Path) -> None:
    weights = {"w": torch.zeros(2).to(torch.float8_e4m3fn), "w.scale_weight": torch.ones(1)}
    save_file(weights, folder / "mochi_fp8_scaled.safetensors")


def _notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


@pytest.mark.parametrize(
    ("fill", "found"),
    [
        (_gguf, r"holds a GGUF model \(mochi-Q4_0.gguf\)"),
        (_single_file, r"holds single files of weights \(dit.safetensors\)"),
        (_fp8, r"holds fp8 weights \(mochi_fp8_scaled.safetensors\)"),
        (_notes, r"holds no weights \(notes.txt\)"),
        (lambda folder: None, "is empty"),
    ],
)
def test_other_layouts_are_told(fill: Callable[[Path], None], found: str, tmp_path: Path) -> None:
    fill(tmp_path)
    error = refusal(tmp_path)
    assert error.code == "model_incomplete"
    with pytest.raises(
        PermanentError,
        match=rf"{found}.*; expected is a folder that .*wrote: model_index.json",
    ):
        raise error


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "mochi.safetensors").write_bytes(b"")
    with pytest.raises(PermanentError, match=r"mochi.safetensors cannot be read as a folder \(Not a directory\)"):
        FolderFiles(tmp_path / "mochi.safetensors")


def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHAPES, tmp_path / "m", ignore=shutil.ignore_patterns("*.py", "*.png")))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        ("model_index.json", "_class_name", "LTXPipeline", "class 'LTXPipeline'; only MochiPipeline"),
        ("transformer/config.json", "_class_name", "WanTransformer3DModel", "only MochiTransformer3DModel"),
        ("vae/config.json", "_class_name", "AutoencoderKL", "only AutoencoderKLMochi"),
        ("text_encoder/config.json", "architectures", ["UMT5EncoderModel"], "only T5EncoderModel or"),
        ("text_encoder/config.json", "architectures", None, "class None"),
        ("scheduler/scheduler_config.json", "shift", 3.0, r"shift is 3\.0; only Mochi.s 1\.0"),
        ("transformer/config.json", "num_layers", 48, r"transformer_blocks\.47\.attn1\.to_q\.weight is not there"),
        ("transformer/config.json", "num_attention_heads", 24, r"is \[128, 12, 2, 2\]; by config.json it is \[768, 12"),
        ("transformer/config.json", "patch_size", "two", "not of a Mochi transformer"),
        ("vae/config.json", "latent_channels", 16, r"decoder\.conv_in\.weight is \[128, 12"),
        ("text_encoder/config.json", "d_model", 4096, r"SelfAttention\.q\.weight is \[96, 96\]"),
    ],
)
def test_classes_and_shapes_are_compared(name: str, key: str, value: object, reason: str, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    edit(folder / name, **{key: value})
    error = refusal(folder)
    assert error.code == "model_unsupported"
    with pytest.raises(PermanentError, match=reason):
        raise error


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    weights = load_file(folder / TRANSFORMER)
    weights["proj_out.weight"] = weights["proj_out.weight"].to(torch.float8_e4m3fn)
    save_file(weights, folder / TRANSFORMER)
    assert "proj_out.weight is F8_E4M3, quantised" in refusal(folder).message


@pytest.mark.parametrize("name", ["transformer", "transformer/config.json", "tokenizer", "scheduler"])
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    assert f"lacks {name}" in refusal(folder).message


@pytest.mark.parametrize("content", [b"[]", b"{", b""])
def test_a_broken_configuration_is_named(content: bytes, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    (folder / "vae/config.json").write_bytes(content)
    assert "vae/config.json" in refusal(folder).message


SHARD = "transformer/diffusion_pytorch_model.bf16-00002-of-00002.safetensors"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _rename(path: Path) -> None:
    """A tensor has another name than in the index."""
    weights = load_file(path)
    weights["other"] = weights.pop(max(weights))
    save_file(weights, path)


def _drop(path: Path) -> None:
    weights = load_file(path)
    weights.pop(max(weights))
    save_file(weights, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, r"lacks shard 00002"),
        (lambda path: path.write_bytes(b""), r"00002-of-00002\.safetensors is damaged: it is empty"),
        (_cut, r"00002-of-00002\.safetensors is damaged: it is cut short"),
        (_rename, r"index\.bf16\.json is damaged: it has the tensor other in no file"),
        (_drop, r"index\.bf16\.json is damaged: it has the tensor \S+ in \S+00002\.safetensors, the files .* none"),
    ],
)
def test_a_damaged_shard_is_named(damage: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    folder = published_model(tmp_path)
    damage(folder / SHARD)
    error = refusal(folder, "bfloat16")
    assert error.code == "model_incomplete"
    with pytest.raises(PermanentError, match=reason):
        raise error
    check_layout(FolderFiles(folder), PARTS, "float32")  # the other variant is whole


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = published_model(tmp_path)
    first = load_file(folder / SHARD.replace("00002-of", "00001-of"))
    save_file(load_file(folder / SHARD) | {min(first): first[min(first)]}, folder / SHARD)
    assert "is in diffusion_pytorch_model.bf16-00001-of-00002.safetensors too" in refusal(folder, "bfloat16").message


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    folder = published_model(tmp_path)
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert "it has no weight_map" in refusal(folder).message
