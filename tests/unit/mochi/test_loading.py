"""Loading the included model."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.errors import PermanentError
from deployments.mochi.loading import load_text_encoder, load_transformer, load_vae
from tests.support.workers.fakes import SHAPES
from tests.support.workers.published_model import INDEX_FORMS, published_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_parts_are_frozen_and_in_the_dtype(name: Any, dtype: torch.dtype) -> None:
    _, encoder = load_text_encoder(SHAPES, name, CPU)
    vae = load_vae(SHAPES, name, CPU)
    assert vae.encoder is None
    for part in (encoder, load_transformer(SHAPES, name, CPU), vae):
        assert not part.training
        assert {p.dtype for p in part.parameters()} == {dtype}
        assert not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("form", INDEX_FORMS)
@pytest.mark.parametrize(("name", "unused"), [("float32", "bf16"), ("bfloat16", None)])
def test_of_the_published_layout_one_variant_is_read(name: Any, unused: str | None, form: str, tmp_path: Path) -> None:
    folder = published_model(tmp_path, form)
    for path in [*folder.glob("transformer/*.safetensors"), *folder.glob("vae/*.safetensors")]:
        if ("bf16" in path.name) == (unused == "bf16"):
            path.write_bytes(b"never read")
    _, encoder = load_text_encoder(folder, name, CPU)
    loaded = [encoder, load_transformer(folder, name, CPU), load_vae(folder, name, CPU)]
    _, encoder = load_text_encoder(SHAPES, name, CPU)
    included = [encoder, load_transformer(SHAPES, name, CPU), load_vae(SHAPES, name, CPU)]
    for part, same in zip(loaded, included, strict=True):
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, same.state_dict()[key]), key


WEIGHTS = {
    "text_encoder": "text_encoder/model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "text_encoder": lambda folder: load_text_encoder(folder, "float32", CPU),
    "transformer": lambda folder: load_transformer(folder, "float32", CPU),
    "vae": lambda folder: load_vae(folder, "float32", CPU),
}


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop(min(weights)), r"the tensor {name} \[.*\] is not there"),
        (lambda weights: weights.update(extra=torch.zeros(1)), r"the tensor extra is of no "),
        (
            lambda weights: weights.update({min(weights): torch.zeros(1)}),
            r"the tensor {name} is \[1\]; by config\.json",
        ),
    ],
)
def test_no_part_runs_on_tensors_that_are_not_in_its_files(
    change: Callable[[dict[str, torch.Tensor]], object], reason: str, part: str, tmp_path: Path
) -> None:
    for name in (part, "tokenizer"):
        shutil.copytree(SHAPES / name, tmp_path / name)
    weights = load_file(tmp_path / WEIGHTS[part])
    name = re.escape(min(weights))
    change(weights)
    save_file(weights, tmp_path / WEIGHTS[part])
    with pytest.raises(PermanentError, match=reason.format(name=name)) as caught:
        LOADERS[part](tmp_path)
    assert caught.value.code == "model_mismatch" and str(tmp_path / WEIGHTS[part]) in caught.value.message


def test_a_tensor_of_two_names_may_lie_under_either(tmp_path: Path) -> None:
    """Also a whole T5 is read: its decoder is left out."""
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(SHAPES / name, tmp_path / name)
    weights = load_file(tmp_path / WEIGHTS["text_encoder"])
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    weights["decoder.final_layer_norm.weight"] = torch.zeros(96)
    save_file(weights, tmp_path / WEIGHTS["text_encoder"])
    _, encoder = load_text_encoder(tmp_path, "float32", CPU)
    assert torch.equal(encoder.shared.weight, weights["encoder.embed_tokens.weight"].float())
    assert torch.equal(encoder.encoder.embed_tokens.weight, encoder.shared.weight)
