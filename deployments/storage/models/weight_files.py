"""Which files of a model are needed, by their names alone: one variant of each part's weights.

A part may come in several variants: ``model.safetensors`` (usually fp32) and ``model.bf16.safetensors``, each also as
shards with an index. Libraries write the variant in different places of the name:
``model.bf16-00001-of-00002.safetensors`` or ``model-00001-of-00002.bf16.safetensors``,
``model.safetensors.index.bf16.json`` or ``model.bf16.safetensors.index.json``.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from deployments.dtypes import DtypeName, Dtypes, part_dtype
from deployments.errors import PermanentError

INDEX = "model_index.json"
CHECKSUMS = "SHA256SUMS"
PARTS = ("scheduler", "tokenizer", "text_encoder", "transformer", "vae")
"""Of a Mochi pipeline."""
STEMS = {"text_encoder": "model", "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""What the names of a part's weights begin with; the parts that have none are files of text."""
SINGLE_STEM = "model"
"""The same of a model that is no pipeline."""

# The order in which variants are taken: what loses nothing first.
_PREFERRED: dict[str, tuple[str | None, ...]] = {
    "bfloat16": ("bf16", None, "fp32", "fp16"),
    "float32": ("fp32", None, "bf16", "fp16"),
}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of one variant of a part's weights; names without their folder."""

    variant: str | None  # bf16, fp16, ...; None for files that name none
    shards: tuple[str, ...]  # one file, or all of several in order
    index: str | None  # the JSON file that tells where each tensor is; None for one file

    @property
    def names(self) -> tuple[str, ...]:
        return self.shards if self.index is None else (self.index, *self.shards)


@dataclass(slots=True)
class _Variant:
    single: str | None = None
    index: str | None = None
    shards: dict[int, str] = field(default_factory=dict)
    counts: set[int] = field(default_factory=set)  # of shards, by their names; one unless there are leftovers


def choose_weights(names: Iterable[str], part: str, dtype: DtypeName) -> WeightFiles:
    """The variant of a part's weights that fits `dtype`, or the only one that there is.

    Args:
        names: of the files in the part's folder.
        part: one of STEMS.
        dtype: that the model computes in.

    Raises:
        PermanentError: `model_incomplete`: there is none that can be chosen, or shards or their index are missing.
    """
    return _choose(sorted(names), f"{part}/", STEMS[part], dtype)


def single_model_files(
    names: Iterable[str], dtype: DtypeName, keep: Callable[[str], bool] = lambda _: True
) -> list[str]:
    """The files of a model of transformers that is no pipeline: one variant of the weights, and files of text.

    Args:
        names: of the files right in its folder.
        dtype: that it computes in.
        keep: of the names of the files that are no weights, those that are wanted.

    Raises:
        PermanentError: `model_incomplete`, see `choose_weights`.
    """
    own = sorted(name for name in names if "/" not in name and not name.startswith("."))
    weights = _choose(own, "the folder ", SINGLE_STEM, dtype).names
    others = (name for name in own if not name.endswith(_WEIGHTS) and _read_name(name, SINGLE_STEM) is None)
    return [*weights, *(name for name in others if name == CHECKSUMS or keep(name))]


def _choose(found: Sequence[str], where: str, stem: str, dtype: DtypeName) -> WeightFiles:
    variants = _variants(found, stem)
    if not variants:
        weights = [name for name in found if name.endswith(_WEIGHTS)]
        raise PermanentError(
            "model_incomplete",
            f"{where}has no {stem}.safetensors, nor shards of it; its weights are {_listed(weights)}",
        )
    return _complete(where, *_preferred(variants, where, dtype))


def needed_files(names: Iterable[str], parts: Sequence[str], dtypes: Dtypes) -> list[str]:
    """The files of a pipeline that these parts need, in order.

    Args:
        names: all files, relative to the pipeline's folder, with `/`.
        dtypes: that the parts compute in.

    Raises:
        PermanentError: `model_incomplete`, see `choose_weights`.
    """
    everything = set(names)
    needed = [name for name in (INDEX, CHECKSUMS) if name in everything]
    for part in dict.fromkeys(parts):
        own = names_in(everything, part)
        weights = choose_weights(own, part, part_dtype(dtypes, part)).names if part in STEMS else ()
        of_variants = {name for name in own if part in STEMS and _read_name(name, STEMS[part]) is not None}
        needed += [
            f"{part}/{name}"
            for name in own
            if name in weights or not (name.endswith(_WEIGHTS) or name in of_variants or name.startswith("."))
        ]
    return needed


def names_in(names: Iterable[str], part: str) -> list[str]:
    """The names of the files right inside the folder of a part, without it."""
    inside = (name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/"))
    return sorted(name for name in inside if "/" not in name)


def _variants(names: Sequence[str], stem: str) -> dict[str | None, _Variant]:
    variants: dict[str | None, _Variant] = {}
    for name in names:
        if (read := _read_name(name, stem)) is None:
            continue
        variant = variants.setdefault(read.variant, _Variant())
        if read.is_index:
            variant.index = name
        elif read.count:
            variant.shards[read.shard] = name
            variant.counts.add(read.count)
        else:
            variant.single = name
    return variants


@dataclass(frozen=True, slots=True)
class _Name:
    variant: str | None
    is_index: bool
    shard: int = 0  # from 1
    count: int = 0  # of shards


def _read_name(name: str, stem: str) -> _Name | None:
    """None for a name that is neither weights of this stem nor their index."""
    shard = _SHARD.search(name)
    first, *rest = _SHARD.sub("", name, count=1).split(".")
    if first != stem or "safetensors" not in rest:
        return None
    variant = ".".join(word for word in rest if word not in ("safetensors", "index", "json")) or None
    if rest[-1] == "json":
        return _Name(variant, is_index=True) if "index" in rest else None
    if rest[-1] != "safetensors":
        return None
    return _Name(variant, False, int(shard[1]), int(shard[2])) if shard else _Name(variant, False)


def _preferred(variants: dict[str | None, _Variant], where: str, dtype: DtypeName) -> tuple[str | None, _Variant]:
    for name in _PREFERRED[dtype]:
        if name in variants:
            return name, variants[name]
    if len(variants) == 1:
        return next(iter(variants.items()))
    raise PermanentError(
        "model_incomplete",
        f"{where}has weights of the variants {_listed(map(str, variants))}, none of which is fp32, bf16 or fp16; "
        "keep one of them",
    )


def _complete(where: str, name: str | None, variant: _Variant) -> WeightFiles:
    if variant.shards and variant.index:
        if len(variant.counts) > 1:
            raise PermanentError(
                "model_incomplete",
                f"{where}has shards of more than one model: {_listed(variant.shards.values())}",
            )
        count = max(variant.counts)
        if missing := [f"{i:05}" for i in range(1, count + 1) if i not in variant.shards]:
            example = variant.shards[min(variant.shards)]
            raise PermanentError("model_incomplete", f"{where}has {example} but lacks shard {_listed(missing)}")
        return WeightFiles(name, tuple(variant.shards[i] for i in sorted(variant.shards)), variant.index)
    if variant.single is not None:
        return WeightFiles(name, (variant.single,), None)
    has, lacks = (variant.index, "shards") if variant.index else (variant.shards[min(variant.shards)], "index")
    raise PermanentError("model_incomplete", f"{where}has {has} but lacks its {lacks}")


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return (", ".join(found[:4]) or "none") + more
