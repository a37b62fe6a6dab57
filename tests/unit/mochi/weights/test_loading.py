"""Loading the included model."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import T5EncoderModel

from deployments.errors import PermanentError
from deployments.mochi.weights.loading import LoadProgress, load_part, load_text_encoder, load_transformer, load_vae
from deployments.mochi.weights.parts import VAE, Part, plan_part
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
        assert {p.dtype for name, p in part.named_parameters() if name != "pos_frequencies"} == {dtype}
        assert part.dtype == dtype
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


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_parts_are_those_of_the_libraries_own_loading(name: Any, dtype: torch.dtype) -> None:
    """Bit for bit, in what they hold and in what they give."""
    _, encoder = load_text_encoder(SHAPES, name, CPU)
    transformer, vae = load_transformer(SHAPES, name, CPU), load_vae(SHAPES, name, CPU)
    theirs: list[Any] = [
        T5EncoderModel.from_pretrained(SHAPES / "text_encoder", dtype=dtype),
        MochiTransformer3DModel.from_pretrained(SHAPES / "transformer", torch_dtype=dtype),
        AutoencoderKLMochi.from_pretrained(SHAPES / "vae", torch_dtype=dtype),
    ]
    theirs[2].encoder = None
    for part, same in zip([encoder, transformer, vae], theirs, strict=True):
        same.eval().requires_grad_(False)
        assert part.state_dict().keys() == same.state_dict().keys()
        for key, tensor in part.state_dict().items():
            stored = torch.float32 if key == "pos_frequencies" else dtype
            assert tensor.dtype == stored and torch.equal(tensor.to(dtype), same.state_dict()[key]), key
    ids = torch.arange(2, 14)[None]
    assert torch.equal(encoder(ids)[0], theirs[0](ids)[0])
    latents = torch.randn(1, 12, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(vae.decode(latents).sample, theirs[2].decode(latents).sample)


def test_positions_are_float32_from_the_float32_files_and_nothing_else_is(tmp_path: Path) -> None:
    folder = published_model(tmp_path, positions_seed=1)
    exact = load_transformer(folder, "float32", CPU).pos_frequencies
    loaded = load_transformer(folder, "bfloat16", CPU)
    assert loaded.pos_frequencies.dtype == torch.float32 and torch.equal(loaded.pos_frequencies, exact)
    assert not torch.equal(exact, exact.bfloat16().float())
    assert loaded.dtype == torch.bfloat16


def test_positions_of_another_model_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = published_model(tmp_path, positions_seed=1)
    exact = load_transformer(folder, "float32", CPU).pos_frequencies
    shard = folder / "transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
    weights = load_file(shard)
    weights["pos_frequencies"] *= 1.02
    save_file(weights, shard)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        loaded = load_transformer(folder, "bfloat16", CPU)
    assert torch.equal(loaded.pos_frequencies, exact.bfloat16().float())
    assert "is another model's" in caplog.text


def test_the_log_tells_positions_that_are_nowhere_float32(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ray.serve"):
        load_transformer(SHAPES, "bfloat16", CPU)
    assert len([line for line in caplog.messages if "nowhere float32" in line]) == 1
    assert re.search(r"transformer loaded: 0\.\d\d GB in \d+\.\d s, \d+\.\d\d GB/s", caplog.text)


def test_a_long_loading_tells_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    time = iter([0.0, 4.0, 12.0, 15.0, 25.0, 31.0, 40.0, 40.0])
    with (
        caplog.at_level(logging.INFO, "ray.serve"),
        LoadProgress("transformer", 20 * 10**9, lambda: next(time)) as done,
    ):
        for _ in range(5):
            done.add(4 * 10**9)
    assert [line.split(" GB")[0] for line in caplog.messages] == [
        "transformer: 8.0 of 20.0",
        "transformer: 16.0 of 20.0",
        "transformer loaded: 20.00",
    ]


def test_no_byte_of_the_vae_encoder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(SHAPES / "vae", folder / "vae")
    plan = plan_part(folder, VAE, "float32")
    assert plan.wanted and all(name.startswith("decoder.") for name in plan.wanted)
    weights = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    decoder = {name: tensor for name, tensor in weights.items() if name.startswith("decoder.")}
    assert plan.nbytes == sum(tensor.nbytes for tensor in decoder.values()) < sum(t.nbytes for t in weights.values())
    # A file of the decoder alone is a whole one, a file with a part of the encoder is not.
    save_file(decoder, folder / "vae/diffusion_pytorch_model.safetensors")
    load_vae(folder, "float32", CPU)
    encoder = next(name for name in weights if name.startswith("encoder."))
    save_file(decoder | {encoder: weights[encoder]}, folder / "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(PermanentError, match=r"the tensor encoder\..* is not there"):
        load_vae(folder, "float32", CPU)


class WithBuffers(nn.Module):
    """What a library may add one day: a buffer that no file holds, and one that the file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("table", torch.arange(5.0) ** 2, persistent=False)
        self.register_buffer("mean", torch.zeros(2))


def test_buffers_that_no_file_holds_are_as_the_class_makes_them(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text("{}")
    weights = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(2), "mean": torch.full((2,), 7.0)}
    save_file(weights, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    module = load_part(tmp_path, Part("vae", lambda config: WithBuffers()), "float32", CPU)
    assert torch.equal(module.table, torch.arange(5.0) ** 2)
    assert torch.equal(module.mean, weights["mean"]) and "mean" in dict(module.named_buffers())
    assert torch.equal(module.layer.weight, weights["layer.weight"])


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
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
    for factor in (1, 2):  # under both: one tensor if they are equal
        weights["shared.weight"] = weights["encoder.embed_tokens.weight"] * factor
        save_file(weights, tmp_path / WEIGHTS["text_encoder"])
        _, encoder = load_text_encoder(tmp_path, "float32", CPU)
        assert (encoder.encoder.embed_tokens.weight is encoder.shared.weight) == (factor == 1)
        assert torch.equal(encoder.encoder.embed_tokens.weight, weights["encoder.embed_tokens.weight"].float())


def test_tensors_of_a_type_that_is_no_float_are_refused(tmp_path: Path) -> None:
    shutil.copytree(SHAPES / "transformer", tmp_path / "transformer")
    weights = load_file(tmp_path / WEIGHTS["transformer"])
    weights["proj_out.bias"] = weights["proj_out.bias"].to(torch.float8_e4m3fn)
    save_file(weights, tmp_path / WEIGHTS["transformer"])
    with pytest.raises(PermanentError, match=r"proj_out.bias is F8_E4M3; only weights of F64, F32") as caught:
        load_transformer(tmp_path, "float32", CPU)
    assert caught.value.code == "model_unsupported"
