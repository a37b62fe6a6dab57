"""Small folders of the shape in which Mochi 1 is published: fp32 and bf16 side by side, in one file or in shards."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.workers.fakes import SHAPES

DTYPES = {None: torch.float32, "bf16": torch.bfloat16}
INDEX_FORMS = {
    "diffusers": "{stem}.safetensors.index.{variant}.json",
    "older": "{stem}.{variant}.safetensors.index.json",
}
SHARD_FORMS = {
    "diffusers": "{stem}.{variant}-{i:05}-of-{n:05}.safetensors",
    "older": "{stem}-{i:05}-of-{n:05}.{variant}.safetensors",
}


def published_model(folder: Path, form: str = "diffusers", positions_seed: int | None = None) -> Path:
    """The included model as `genmo/mochi-1-preview` lies on the hub, authors' own files at the top included.

    Transformer: 3 shards fp32, 2 shards bf16; VAE: one file each; text encoder: 2 shards, fp32 alone.

    Args:
        form: how the names of shards and indexes tell the variant.
        positions_seed: of positions that bfloat16 rounds; those of the included model are bfloat16 themselves.
    """
    for name in ("model_index.json", "scheduler", "tokenizer", "text_encoder", "transformer", "vae"):
        source, target = SHAPES / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    (folder / "README.md").write_text("Mochi 1")
    for name in ("dit", "decoder", "encoder"):
        save_file({"w": torch.zeros(1000)}, folder / f"{name}.safetensors")
    transformer = load_file(SHAPES / "transformer/diffusion_pytorch_model.safetensors")
    if positions_seed is not None:
        generator = torch.Generator().manual_seed(positions_seed)
        shape = transformer["pos_frequencies"].shape
        transformer["pos_frequencies"] = torch.randn(shape, generator=generator) * 0.02 + 0.5
    write_weights(folder / "transformer", "diffusion_pytorch_model", transformer, None, 3, form)
    write_weights(folder / "transformer", "diffusion_pytorch_model", transformer, "bf16", 2, form)
    vae = load_file(SHAPES / "vae/diffusion_pytorch_model.safetensors")
    write_weights(folder / "vae", "diffusion_pytorch_model", vae, None, 1, form)
    write_weights(folder / "vae", "diffusion_pytorch_model", vae, "bf16", 1, form)
    text_encoder = load_file(SHAPES / "text_encoder/model.safetensors")
    write_weights(folder / "text_encoder", "model", text_encoder, None, 2, form)
    return folder


def write_weights(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], variant: str | None, shards: int, form: str
) -> None:
    """One variant of a part's weights, in its dtype."""
    cast = {name: tensor.to(DTYPES[variant]) for name, tensor in tensors.items()}
    if shards == 1:
        save_file(cast, folder / (f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"))
        return
    weight_map: dict[str, str] = {}
    for i in range(1, shards + 1):
        if variant is None:
            shard = f"{stem}-{i:05}-of-{shards:05}.safetensors"
        else:
            shard = SHARD_FORMS[form].format(stem=stem, variant=variant, i=i, n=shards)
        own = {name: cast[name] for name in sorted(cast)[i - 1 :: shards]}
        save_file(own, folder / shard)
        weight_map |= dict.fromkeys(own, shard)
    plain = f"{stem}.safetensors.index.json"
    index = plain if variant is None else INDEX_FORMS[form].format(stem=stem, variant=variant)
    size = sum(tensor.nbytes for tensor in cast.values())
    (folder / index).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
