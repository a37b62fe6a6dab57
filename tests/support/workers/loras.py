"""LoRAs for tests: random weights for some layers of a transformer, made and written by peft's own code."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deployments.storage.models.lora_files import CONFIG, WEIGHTS, LoraFiles

TARGETS = ("to_q", "to_v", "add_k_proj", "to_out.0", "net.0.proj")
"""Of each block; three of them are packed with others into one product."""
OUTSIDE = ("caption_proj", "proj_out", "norm_out.linear")
"""Of the text, which is projected when a sample is prepared, and behind the blocks."""


def adapted(transformer: Any, seed: int, targets: Sequence[str] = TARGETS, **config: Any) -> Any:
    """Peft's model around `transformer`, which it changes. config: more of peft's LoraConfig."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(transformer, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": [*targets]} | config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3, generator=generator)
    return model


def peft_lora(folder: Path, transformer: Any, seed: int, **how: Any) -> LoraFiles:
    """As `save_pretrained` of peft writes it; see `adapted`."""
    adapted(transformer, seed, **how).save_pretrained(folder)
    return LoraFiles(folder / WEIGHTS[1], folder / CONFIG, f"peft {seed}")


def diffusers_lora(folder: Path, transformer: Any, seed: int, **how: Any) -> LoraFiles:
    """As `save_lora_weights` of diffusers' Mochi pipeline writes it."""
    from diffusers import MochiPipeline
    from peft.utils import get_peft_model_state_dict

    model = adapted(transformer, seed, **how)
    tensors = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    config = {key: sorted(v) if isinstance(v, set) else v for key, v in model.peft_config["default"].to_dict().items()}
    MochiPipeline.save_lora_weights(folder, tensors, transformer_lora_adapter_metadata=json.loads(json.dumps(config)))
    return LoraFiles(folder / WEIGHTS[0], None, f"diffusers {seed}")


def written(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> LoraFiles:
    """A file with these tensors, whatever they are."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS[0], metadata=metadata or None)
    return LoraFiles(folder / WEIGHTS[0], None, "written")
