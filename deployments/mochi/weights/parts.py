"""The parts of a Mochi model that have weights: their classes, and which tensors of which files each is made of."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.mochi.weights.tensors import TORCH_DTYPES, FileTensor
from deployments.storage.models.layout import FolderFiles, StoredTensor, part_tensors, part_weights, read_json
from deployments.storage.models.positions import TENSOR as POSITIONS
from deployments.storage.models.positions import exact_positions

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ENCODER_HALF = "encoder"
"""Of the VAE: what makes latents of videos, which no stage does."""


@dataclass(frozen=True, slots=True)
class Part:
    """A subfolder of a model that holds weights."""

    name: str
    make: Callable[[Mapping[str, Any]], nn.Module]  # a module of a configuration
    float32: tuple[str, ...] = ()  # tensors that are float32 whatever the others are
    unused: str = ""  # the submodule that is left out


def _make_text_encoder(config: Mapping[str, Any]) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    module: nn.Module = T5EncoderModel(T5Config.from_dict(dict(config)))
    return module


def _make_transformer(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import MochiTransformer3DModel

    module: nn.Module = MochiTransformer3DModel.from_config(config)
    return module


def _make_vae(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKLMochi

    module: nn.Module = AutoencoderKLMochi.from_config(config)
    return module


TEXT_ENCODER = Part("text_encoder", _make_text_encoder)
TRANSFORMER = Part("transformer", _make_transformer, float32=(POSITIONS,))
VAE = Part("vae", _make_vae, unused=ENCODER_HALF)
WHOLE_VAE = Part("vae", _make_vae)


@dataclass(frozen=True, slots=True)
class PartPlan:
    """What a part is made of, before any of its tensors is read."""

    where: Path  # the index of the weights, or their only file
    module: nn.Module  # without memory: on the device `meta`
    wanted: dict[str, tuple[FileTensor, torch.dtype]]  # by the module's names: where each is, and what it is cast to
    positions: torch.Tensor | None = None  # float32, that stand in place of those in `wanted`

    @property
    def nbytes(self) -> int:
        """That are read."""
        return sum(stored.nbytes for stored, _ in self.wanted.values())


def plan_part(folder: Path, part: Part, dtype: DtypeName) -> PartPlan:
    """Choose the variant of a part's weights that fits `dtype`, and compare its headers with the part's class.

    Raises:
        PermanentError: `model_incomplete`, `model_mismatch`, `model_unsupported`; names the file or the tensor.
    """
    files = FolderFiles(folder)
    weights = part_weights(files, part.name, dtype)
    stored = part_tensors(files, part.name, weights)
    where = folder / part.name / (weights.index or weights.shards[0])
    module = _without_memory(part.make, read_json(files, f"{part.name}/config.json"))
    left_out = f"{part.unused}."
    if part.unused and not any(name.startswith(left_out) for name in stored):
        setattr(module, part.unused, None)
    _compare(where, module, {name: tensor.info.shape for name, tensor in stored.items()})
    if part.unused:
        setattr(module, part.unused, None)
    names = sorted(module.state_dict().keys() & stored.keys())
    wanted = {
        name: (_file_tensor(folder, name, stored[name]), DTYPES["float32" if name in part.float32 else dtype])
        for name in names
    }
    plan = PartPlan(where, module, wanted)
    return _with_exact_positions(plan, files, dtype) if POSITIONS in part.float32 else plan


def _without_memory(make: Callable[[Mapping[str, Any]], nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """The module with all that its files hold on the device `meta`."""
    with torch.device("meta"):
        module = make(config)
    if not any(buffer.is_meta for _, buffer in _unsaved_buffers(module)):
        return module
    # Slow, but what no file holds is computed when a module is made.
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return make(config)


def _unsaved_buffers(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    saved = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name not in saved]


def _file_tensor(folder: Path, name: str, stored: StoredTensor) -> FileTensor:
    dtype = TORCH_DTYPES.get(stored.info.dtype)
    if dtype is None:
        raise PermanentError(
            "model_unsupported",
            f"{folder / stored.file}: {name} is {stored.info.dtype}; only weights of {', '.join(TORCH_DTYPES)} are "
            "supported",
        )
    return FileTensor(folder / stored.file, stored.info.offset, dtype, stored.info.shape)


def _with_exact_positions(plan: PartPlan, files: FolderFiles, dtype: DtypeName) -> PartPlan:
    exact = exact_positions(files, dtype)
    if exact is None:
        return plan
    positions = torch.frombuffer(bytearray(exact.data), dtype=torch.float32).reshape(exact.shape)
    wanted = {name: place for name, place in plan.wanted.items() if name != POSITIONS}
    return PartPlan(plan.where, plan.module, wanted, positions)


def _compare(where: Path, module: nn.Module, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the files hold exactly the tensors of the module. Raises PermanentError `model_mismatch`."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    same = tied_names(module)
    ignored = [re.compile(form) for form in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or []]
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            if same.get(name) not in stored and not any(target in stored for target, of in same.items() if of == name):
                mismatch(where, f"the tensor {name} {list(expected[name])} is not there")
        elif name not in expected:
            if not any(form.search(name) for form in ignored):
                mismatch(where, f"the tensor {name} is of no {type(module).__name__}")
        elif stored[name] != expected[name]:
            mismatch(where, f"the tensor {name} is {list(stored[name])}; by config.json it is {list(expected[name])}")


def tied_names(module: nn.Module) -> Mapping[str, str]:
    """Names of a module that are one tensor: each with the one that it is the same as."""
    same: Mapping[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    return same


def mismatch(where: Path, what: str) -> NoReturn:
    """Raise PermanentError `model_mismatch`."""
    raise PermanentError("model_mismatch", f"{where}: {what}; the weights and config.json must be of one Mochi model")
