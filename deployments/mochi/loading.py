"""Loading the parts of a Mochi model in the layout of diffusers."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.storage.model_layout import FolderFiles, part_tensors, part_weights, read_json
from deployments.storage.scratch import scratch_folder
from deployments.storage.weight_files import STEMS, WeightFiles

if TYPE_CHECKING:
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_text_encoder(
    folder: Path, dtype: DtypeName, device: torch.device
) -> tuple["PreTrainedTokenizerBase", "T5EncoderModel"]:
    """The tokenizer and the T5 encoder, frozen, on `device`. For the errors see `_load`."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    def empty(config: Mapping[str, Any]) -> torch.nn.Module:
        model: torch.nn.Module = T5EncoderModel(T5Config.from_dict(dict(config)))
        return model

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    part = _Part("text_encoder", empty, partial(T5EncoderModel.from_pretrained, dtype=DTYPES[dtype]))
    return tokenizer, _frozen(_load(folder, part, dtype), device)


def load_transformer(folder: Path, dtype: DtypeName, device: torch.device) -> "MochiTransformer3DModel":
    """The diffusion transformer, frozen, on `device`. For the errors see `_load`."""
    from diffusers import MochiTransformer3DModel

    load = partial(MochiTransformer3DModel.from_pretrained, torch_dtype=DTYPES[dtype])
    part = _Part("transformer", MochiTransformer3DModel.from_config, load)
    return _frozen(_load(folder, part, dtype), device)


def load_vae(folder: Path, dtype: DtypeName, device: torch.device) -> "AutoencoderKLMochi":
    """The video autoencoder without its encoder half, frozen, on `device`. For the errors see `_load`."""
    from diffusers import AutoencoderKLMochi

    load = partial(AutoencoderKLMochi.from_pretrained, torch_dtype=DTYPES[dtype])
    vae = _load(folder, _Part("vae", AutoencoderKLMochi.from_config, load), dtype)
    vae.encoder = None
    return _frozen(vae, device)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str  # of its folder
    empty: Callable[[Mapping[str, Any]], torch.nn.Module]  # makes the module of a configuration, for its shapes alone
    load: Callable[..., tuple[Any, Mapping[str, Any]]]  # `from_pretrained` of its class


def _load(folder: Path, part: _Part, dtype: DtypeName) -> Any:
    """A part with the variant of its weights that fits `dtype`, every tensor of it read from the files.

    The libraries only warn of a tensor that they miss, and fill it with noise. So the headers are compared with the
    module before, and what the library says that it did afterwards.

    Raises:
        PermanentError: `model_incomplete`, `model_mismatch`; names the file or the tensor.
    """
    files = FolderFiles(folder)
    weights = part_weights(files, part.name, dtype)
    stored = part_tensors(files, part.name, weights)
    where = folder / part.name / (weights.index or weights.shards[0])
    with torch.device("meta"):
        module = part.empty(read_json(files, f"{part.name}/config.json"))
    _compare(where, module, {name: tensor.shape for name, tensor in stored.items()})
    with _plain_names(folder / part.name, weights, STEMS[part.name]) as plain:
        loaded, report = part.load(plain, output_loading_info=True)
    for state in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(state):
            first = min(map(str, report[state]))
            raise PermanentError("model_mismatch", f"{where}: the library tells {state}, the first one {first}")
    return loaded


def _compare(where: Path, module: torch.nn.Module, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the files hold exactly the tensors of the module. Raises PermanentError `model_mismatch`."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    same: Mapping[str, str] = getattr(module, "all_tied_weights_keys", None) or {}  # names that are one tensor
    ignored = [re.compile(form) for form in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or []]
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            if same.get(name) not in stored and not any(target in stored for target, of in same.items() if of == name):
                _mismatch(where, f"the tensor {name} {list(expected[name])} is not there")
        elif name not in expected:
            if not any(form.search(name) for form in ignored):
                _mismatch(where, f"the tensor {name} is of no {type(module).__name__}")
        elif stored[name] != expected[name]:
            _mismatch(where, f"the tensor {name} is {list(stored[name])}; by config.json it is {list(expected[name])}")


def _mismatch(where: Path, what: str) -> NoReturn:
    raise PermanentError("model_mismatch", f"{where}: {what}; the weights and config.json must be of one Mochi model")


@contextmanager
def _plain_names(folder: Path, weights: WeightFiles, stem: str) -> Iterator[Path]:
    """A folder in which these weights are the only variant, by links: libraries differ in how they name variants."""
    with scratch_folder("mochi-weights-") as plain:
        (plain / "config.json").symlink_to((folder / "config.json").absolute())
        if weights.index is None:
            (plain / f"{stem}.safetensors").symlink_to((folder / weights.shards[0]).absolute())
        else:
            (plain / f"{stem}.safetensors.index.json").symlink_to((folder / weights.index).absolute())
            for shard in weights.shards:
                (plain / shard).symlink_to((folder / shard).absolute())
        yield plain


def _frozen(module: Any, device: torch.device) -> Any:
    return module.to(device).eval().requires_grad_(False)
