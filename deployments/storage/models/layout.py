"""Whether files are a whole Mochi pipeline in the layout of diffusers, told in milliseconds and without torch.

Read are the JSON files and the headers of the weights, so the same is checked of a folder, and of a bucket before
anything is fetched from it. `deployments.mochi.weights.loading` compares every tensor with the model's classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from deployments.dtypes import DtypeName, Dtypes, part_dtype
from deployments.errors import PermanentError
from deployments.storage.models.safetensors_file import TensorInfo, stored_tensors
from deployments.storage.models.weight_files import INDEX, PARTS, STEMS, WeightFiles, choose_weights, names_in

PIPELINE = "MochiPipeline"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
CLASSES = {
    # The encoder alone is taken of a whole T5.
    "text_encoder": ("T5EncoderModel", "T5ForConditionalGeneration"),
    "transformer": ("MochiTransformer3DModel",),
    "vae": ("AutoencoderKLMochi",),
}
EXPECTED = f"expected is a folder that `MochiPipeline.save_pretrained` wrote: {INDEX} and {', '.join(PARTS)} beside it"
# What the libraries take for keys that a configuration leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "text_encoder": {"d_model": 512, "d_kv": 64, "num_layers": 6, "num_heads": 8},
    "transformer": {
        "patch_size": 2,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "num_layers": 48,
        "in_channels": 12,
        "out_channels": None,
    },
    "vae": {"decoder_block_out_channels": (128, 256, 512, 768), "latent_channels": 12, "out_channels": 3},
}
_FLOATS = ("F64", "F32", "BF16", "F16")


# Of the sampler in `deployments.mochi.denoise`.
_SCHEDULER = {
    "invert_sigmas": True,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a model, and where it lies."""

    file: str  # name relative to the model, with `/`
    info: TensorInfo


class ModelFiles(Protocol):
    """The files of a model, wherever they lie."""

    @property
    def where(self) -> str:
        """For people: a path or an address."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """In bytes, by name relative to the model with `/`; at least all files at the top and in PARTS."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A part of a file, shorter where the file ends. Raises OSError or a WorkerError."""


class FolderFiles(ModelFiles):
    """The files of a model in a local folder; only those at the top and in PARTS are looked at.

    Raises:
        PermanentError: `model_not_found`: it is no folder, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._sizes = dict(_sizes_in(folder))
        except OSError as error:
            raise PermanentError(
                "model_not_found", f"{folder} cannot be read as a folder ({error.strerror}); {EXPECTED}"
            ) from error

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    def read(self, name: str, offset: int, length: int) -> bytes:
        with (self.folder / name).open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)


def check_layout(files: ModelFiles, parts: Sequence[str], dtypes: Dtypes) -> None:
    """Check classes, files, and shapes that tell models apart.

    Args:
        parts: that are needed, of PARTS.
        dtypes: that the parts compute in, by which the variant of their weights is chosen.

    Raises:
        PermanentError: `model_incomplete`, `model_unsupported`, with what was found and what is expected.
    """
    check_classes(files, parts)
    for part in parts:
        if part in STEMS:
            _check_weights(files, part, part_dtype(dtypes, part))


def check_classes(files: ModelFiles, parts: Sequence[str]) -> None:
    """Check by the JSON files alone that it is a Mochi pipeline with these parts. For the errors see `check_layout`."""
    if INDEX not in files.sizes:
        raise PermanentError("model_incomplete", f"{files.where} {_found(files)}; {EXPECTED}")
    _check_class(files, INDEX, read_json(files, INDEX).get("_class_name"), (PIPELINE,))
    if missing := [part for part in parts if not names_in(files.sizes, part)]:
        raise PermanentError("model_incomplete", f"the model in {files.where} lacks {', '.join(missing)}; {EXPECTED}")
    if "scheduler" in parts:
        _check_scheduler(files)
    for part in parts:
        if part in STEMS:
            config = read_json(files, f"{part}/{CONFIG}")
            named = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
            _check_class(files, f"{part}/{CONFIG}", named, CLASSES[part])


def read_json(files: ModelFiles, name: str) -> dict[str, Any]:
    """A JSON file of a model. Raises PermanentError `model_incomplete` when there is none, or it is no JSON object."""
    if name not in files.sizes:
        raise PermanentError("model_incomplete", f"the model in {files.where} lacks {name}; {EXPECTED}")
    try:
        tree = json.loads(files.read(name, 0, files.sizes[name]))
    except (OSError, ValueError) as error:
        raise PermanentError("model_incomplete", f"{files.where}/{name} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise PermanentError("model_incomplete", f"{files.where}/{name} must hold a JSON object")
    return tree


def part_weights(files: ModelFiles, part: str, dtype: DtypeName) -> WeightFiles:
    """The weights of a part that are used. Raises PermanentError `model_incomplete`; see `choose_weights`."""
    try:
        return choose_weights(names_in(files.sizes, part), part, dtype)
    except PermanentError as error:
        raise PermanentError(error.code, f"the model in {files.where}: {error.message}") from error


def part_tensors(files: ModelFiles, part: str, weights: WeightFiles) -> dict[str, StoredTensor]:
    """The tensors in these files of a part, by their headers.

    Raises:
        PermanentError: `model_incomplete`: a file is damaged, or the index names other tensors; names file or tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    places: dict[str, str] = {}
    for shard in weights.shards:
        for name, info in shard_tensors(files, f"{part}/{shard}").items():
            if name in tensors:
                _damaged(files, f"{part}/{shard}", f"the tensor {name} is in {places[name]} too")
            tensors[name], places[name] = StoredTensor(f"{part}/{shard}", info), shard
    if weights.index is not None:
        _check_index(files, f"{part}/{weights.index}", places)
    return tensors


def shard_tensors(files: ModelFiles, name: str) -> dict[str, TensorInfo]:
    """The tensors of one file of weights. Raises PermanentError `model_incomplete`: it is damaged."""
    try:
        return stored_tensors(lambda offset, length: files.read(name, offset, length), files.sizes[name])
    except (OSError, ValueError) as error:
        raise PermanentError(
            "model_incomplete", f"{files.where}/{name} is damaged: {error}; fetch or copy it again"
        ) from error


def _sizes_in(folder: Path) -> list[tuple[str, int]]:
    folders = [folder, *(folder / part for part in PARTS if (folder / part).is_dir())]
    files = [path for each in folders for path in each.iterdir() if path.is_file()]
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


def _check_scheduler(files: ModelFiles) -> None:
    """Refuse a model that wants another sampler; names the setting."""
    config = read_json(files, SCHEDULER_CONFIG)
    for key, wanted in _SCHEDULER.items():
        if config.get(key, wanted) != wanted:
            raise PermanentError(
                "model_unsupported",
                f"{files.where}/{SCHEDULER_CONFIG}: {key} is {config[key]!r}; only Mochi's {wanted!r} is supported",
            )


def _check_weights(files: ModelFiles, part: str, dtype: DtypeName) -> None:
    weights = part_weights(files, part, dtype)
    tensors = {name: tensor.info for name, tensor in part_tensors(files, part, weights).items()}
    where = f"{files.where}/{part}/{weights.shards[0]}"
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise PermanentError(
                "model_unsupported",
                f"{where}: {name} is {tensor.dtype}, quantised; only weights of {', '.join(_FLOATS)} are supported",
            )
    _check_shapes(where, tensors, read_json(files, f"{part}/{CONFIG}"), part)


def _check_class(files: ModelFiles, name: str, found: object, expected: Sequence[str]) -> None:
    if found not in expected:
        raise PermanentError(
            "model_unsupported",
            f"{files.where}/{name} is of the class {found!r}; only {' or '.join(expected)}, as in Mochi, is supported",
        )


def _check_shapes(where: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], part: str) -> None:
    """Compare the tensors at the beginning and the end of a part with its configuration."""
    try:
        expected = _SHAPES[part]({**_DEFAULTS[part], **config})
    except (TypeError, IndexError, KeyError) as error:
        raise PermanentError("model_unsupported", f"config.json beside {where} is not of a Mochi {part}") from error
    for name, shape in expected.items():
        if name not in tensors:
            raise PermanentError("model_unsupported", f"{where}: the tensor {name} is not there; it is no Mochi {part}")
        if tensors[name].shape != shape:
            raise PermanentError(
                "model_unsupported",
                f"{where}: the tensor {name} is {list(tensors[name].shape)}; by config.json it is {list(shape)}",
            )


def _transformer_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch, channels = config["patch_size"], config["in_channels"]
    return {
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "proj_out.weight": (patch * patch * (config["out_channels"] or channels), width),
        f"transformer_blocks.{config['num_layers'] - 1}.attn1.to_q.weight": (width, width),
    }


def _vae_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    channels = config["decoder_block_out_channels"]
    return {
        "decoder.conv_in.weight": (channels[-1], config["latent_channels"], 1, 1, 1),
        "decoder.proj_out.weight": (config["out_channels"], channels[0]),
    }


def _text_encoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width = config["d_model"]
    return {
        f"encoder.block.{config['num_layers'] - 1}.layer.0.SelfAttention.q.weight": (
            config["num_heads"] * config["d_kv"],
            width,
        ),
        "encoder.final_layer_norm.weight": (width,),
    }


_SHAPES = {"text_encoder": _text_encoder_shapes, "transformer": _transformer_shapes, "vae": _vae_shapes}


def _check_index(files: ModelFiles, name: str, places: Mapping[str, str]) -> None:
    """Compare an index with the shard that each tensor is in."""
    listed = read_json(files, name).get("weight_map")
    if not isinstance(listed, dict):
        _damaged(files, name, "it has no weight_map")
    for tensor in sorted(listed.keys() | places.keys()):
        if listed.get(tensor) != places.get(tensor):
            _damaged(
                files,
                name,
                f"it has the tensor {tensor} in {listed.get(tensor, 'no file')}, the files have it in "
                f"{places.get(tensor, 'none')}",
            )


def _damaged(files: ModelFiles, name: str, reason: str) -> NoReturn:
    raise PermanentError("model_incomplete", f"{files.where}/{name} is damaged: {reason}; fetch or copy it again")


def _found(files: ModelFiles) -> str:
    """What lies where a pipeline should."""
    names = sorted(name for name in files.sizes if not name.startswith("."))
    if not names:
        return "is empty"
    weights = [name for name in names if name.endswith((".safetensors", ".gguf", ".ckpt", ".pt", ".bin"))]
    shown = (weights or names)[:3]
    if any(name.endswith(".gguf") for name in weights):
        kind = "a GGUF model"
    elif any(_is_fp8(files, name) for name in weights):
        kind = "fp8 weights"
    elif weights:
        kind = "single files of weights"
    else:
        kind = "no weights"
    return f"holds {kind} ({', '.join(shown)}{', ...' if len(weights or names) > 3 else ''}) and no {INDEX}"


def _is_fp8(files: ModelFiles, name: str) -> bool:
    if not name.endswith(".safetensors"):
        return False
    try:
        tensors = stored_tensors(lambda offset, length: files.read(name, offset, length), files.sizes[name])
    except (OSError, ValueError):
        return False
    return any(tensor.dtype.startswith("F8") for tensor in tensors.values())
