"""LoRAs: small weights that are trained beside a transformer's, and put in place for the passes that ask for them.

A LoRA adds a product of two thin matrices to that of a layer: y = W x + scale x (alpha / r) B (A x). Peft's layers
compute it so, beside the layer's own weight, which never changes. Merging the two and taking them apart again would
leave other bits behind; here a pass without a LoRA runs the modules that were there before any was loaded.

Peft's layers wait outside of the transformer. `Loras.applied` puts those of one LoRA into the places of the layers
that they wrap, and the layers back when the pass is over.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deployments.errors import PermanentError
from deployments.messages import LoraChoice
from deployments.mochi.weights.quantised_weights import QuantisedLinear
from deployments.storage.models.lora_files import LoraFiles
from deployments.storage.models.store import FINGERPRINT_CHARS

if TYPE_CHECKING:
    from diffusers import MochiTransformer3DModel

_METADATA = "lora_adapter_metadata"  # diffusers' entry of the safetensors header: peft's configuration as JSON
_ADAPTER = "default"  # what peft calls the only one of its layers
_PREFIXES = ("base_model.model.", "transformer.")  # of names: peft's and diffusers'
_TENSOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_TAKEN = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""What is taken of peft's configuration; the rest is of the training, or refused."""
_REFUSED = (
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
)


@dataclass(frozen=True, slots=True)
class _Place:
    """A layer of the transformer, and what stands in its place while the LoRA is applied."""

    path: str  # of the layer in the transformer
    parent: nn.Module
    name: str  # of the layer in its parent
    layer: nn.Module
    adapted: Any  # peft's layer around it


class Loras:
    """The LoRAs of one transformer, on its device and in its dtype; at most one is in place at a time.

    Args:
        transformer: with no adapter in it.
        files: of the LoRAs, by name.

    Raises:
        PermanentError: `lora_unusable`, one is no LoRA of this transformer; names it and the tensor.
    """

    def __init__(self, transformer: "MochiTransformer3DModel", files: Mapping[str, LoraFiles]) -> None:
        self._places = {name: _load(transformer, name, each) for name, each in files.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def layout(self, name: str) -> str:
        """A name for the layers of a LoRA and their ranks, of which its memory and time are: 16 hex digits."""
        ranks = sorted(f"{place.path} {place.adapted.r[_ADAPTER]}" for place in self._places[name])
        return hashlib.sha256("\n".join(ranks).encode()).hexdigest()[:FINGERPRINT_CHARS]

    @contextmanager
    def applied(self, choice: LoraChoice | None) -> Iterator[None]:
        """Inside, the transformer is changed by this LoRA; by none for None.

        Raises:
            PermanentError: `lora_unknown`, there is none of this name.
        """
        places = () if choice is None else self._places_of(choice)
        try:
            for place in places:
                setattr(place.parent, place.name, place.adapted)
            yield
        finally:
            for place in places:
                setattr(place.parent, place.name, place.layer)

    def _places_of(self, choice: LoraChoice) -> list[_Place]:
        if choice.name not in self._places:
            raise unknown_lora(choice.name, self._places)
        places = self._places[choice.name]
        for place in places:
            place.adapted.set_scale(_ADAPTER, choice.scale)
        return places


def unknown_lora(name: str, known: Mapping[str, object]) -> PermanentError:
    """The error of a request whose LoRA was taken out of the settings since it was accepted."""
    served = f"served are {', '.join(known)}" if known else "none is served"
    return PermanentError("lora_unknown", f"the LoRA {name} is not served any more; {served}")


def _load(transformer: "MochiTransformer3DModel", name: str, files: LoraFiles) -> list[_Place]:
    """Have diffusers and peft make the layers of a LoRA, around stand-ins of the transformer's own."""
    from peft.tuners.lora import LoraLayer

    tensors, config = _read(name, files)
    layers = _check(transformer, name, files, tensors)
    weight = transformer.proj_out.weight
    for path, layer in layers.items():
        transformer.set_submodule(path, _stand_in(layer, weight))
    try:
        transformer.load_lora_adapter(
            {key: tensor.to(weight.device, weight.dtype) for key, tensor in tensors.items()},
            prefix=None,
            adapter_name=_ADAPTER,
            metadata=None if config is None else config | {"target_modules": sorted(layers)},
            low_cpu_mem_usage=True,
        )
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise _unusable(name, files, f"peft cannot load it: {' '.join(str(error).split())[:300]}") from error
    finally:
        adapted = {path: layer for path, layer in transformer.named_modules() if isinstance(layer, LoraLayer)}
        for path, layer in layers.items():
            transformer.set_submodule(path, layer)
        transformer.unload_lora()
    if left_out := sorted(layers.keys() - adapted.keys()):
        raise _unusable(name, files, f"peft has left out {left_out[0]}; its configuration must be of these weights")
    return [_place(transformer, path, layer, adapted[path]) for path, layer in layers.items()]


def _stand_in(layer: nn.Module, weight: Tensor) -> nn.Linear:
    """A layer of this shape as peft knows it: 8-bit layers are of a class of ours. It takes no memory.

    Args:
        weight: of the device and dtype that peft's layer is to have.
    """
    outputs, inputs = _shape(layer)
    made = nn.Linear(inputs, outputs, bias=False, device="meta")
    made.weight = nn.Parameter(weight.new_zeros(()).expand(outputs, inputs), requires_grad=False)
    return made


def _shape(layer: nn.Module) -> torch.Size:
    """[outputs, inputs]."""
    values = layer.values if isinstance(layer, QuantisedLinear) else layer.weight
    assert isinstance(values, Tensor)
    return values.shape


def _place(transformer: nn.Module, path: str, layer: nn.Module, adapted: Any) -> _Place:
    adapted.base_layer = layer
    parent, _, name = path.rpartition(".")
    return _Place(path, transformer.get_submodule(parent), name, layer, adapted.requires_grad_(False).eval())


def _read(name: str, files: LoraFiles) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors by peft's names without a prefix, and peft's configuration if there is one."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    try:
        with safe_open(files.weights, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = (file.metadata() or {}).get(_METADATA)
        config = json.loads(metadata or (files.config.read_text() if files.config else "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise _unusable(name, files, f"it cannot be read: {error}") from error
    if tensors and not any(_TENSOR.fullmatch(key) for key in tensors):
        tensors = convert_unet_state_dict_to_peft(tensors)  # of older releases of diffusers
    tensors = {_without_prefix(key): tensor for key, tensor in tensors.items()}
    return tensors, None if config is None else _config(name, files, config)


def _config(name: str, files: LoraFiles, config: Any) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise _unusable(name, files, "its configuration is no JSON object")
    own = {_without_prefix(key): value for key, value in config.items()}
    if own.get("peft_type", "LORA") != "LORA":
        raise _unusable(name, files, f"it is a {own['peft_type']}, and only LoRA is supported")
    if refused := [key for key in _REFUSED if own.get(key)]:
        raise _unusable(name, files, f"its configuration has {refused[0]}, which is not supported; train one without")
    return {key: own[key] for key in _TAKEN if key in own}


def _check(
    transformer: "MochiTransformer3DModel", name: str, files: LoraFiles, tensors: Mapping[str, Tensor]
) -> dict[str, nn.Module]:
    """The layers that it adapts, by their paths, after every tensor is compared with the layer that it is for."""
    linear = {
        path: layer for path, layer in transformer.named_modules() if isinstance(layer, nn.Linear | QuantisedLinear)
    }
    adapted: dict[str, nn.Module] = {}
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key)
        if match is None:
            raise _unusable(
                name, files, f"the tensor {key} is none of a LoRA: only lora_A.weight and lora_B.weight are"
            )
        path, half = match.groups()
        if path not in linear:
            raise _unusable(name, files, f"{path} is no linear layer of this {type(transformer).__name__}")
        other = tensors.get(f"{path}.lora_{'B' if half == 'A' else 'A'}.weight")
        if other is None or other.ndim != 2 or tensor.ndim != 2:
            raise _unusable(name, files, f"{path} has no two matrices lora_A and lora_B")
        outputs, inputs = _shape(linear[path])
        rank = min(tensor.shape[0], other.shape[1]) if half == "A" else min(tensor.shape[1], other.shape[0])
        wanted = (rank, inputs) if half == "A" else (outputs, rank)
        if tuple(tensor.shape) != wanted or not rank:
            raise _unusable(name, files, f"{key} is {list(tensor.shape)}; this model's layer wants {list(wanted)}")
        if not bool(torch.isfinite(tensor).all()):
            raise _unusable(name, files, f"{key} holds NaN or infinity")
        adapted[path] = linear[path]
    if not adapted:
        raise _unusable(name, files, "it holds no tensor")
    return adapted


def _without_prefix(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _unusable(name: str, files: LoraFiles, what: str) -> PermanentError:
    return PermanentError("lora_unusable", f"the LoRA {name} cannot be used: {files.weights}: {what}")
