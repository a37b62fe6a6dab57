"""Writing a model into one folder from which it loads fastest.

Each part has one file: the variant that is wanted, already cast, without what no stage uses, the transformer's
positions in float32. Lists of SHA-256 lie beside them, of files and of their chunks.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from deployments.dtypes import DtypeName, part_dtype
from deployments.errors import PermanentError
from deployments.mochi.preview import FILE as PREVIEW
from deployments.mochi.weights.parts import TEXT_ENCODER, TRANSFORMER, VAE, WHOLE_VAE, Part, PartPlan, plan_part
from deployments.mochi.weights.tensors import TORCH_DTYPES, read_tensors
from deployments.storage.fetching.cache_room import free_bytes
from deployments.storage.fetching.chunk_list import CHUNK_BYTES, CHUNK_LIST, ChunkHasher, ChunkList
from deployments.storage.models.layout import FolderFiles, check_layout, part_weights
from deployments.storage.models.positions import TENSOR as POSITIONS
from deployments.storage.models.safetensors_file import safetensors_start
from deployments.storage.models.weight_files import CHECKSUMS, PARTS, STEMS, needed_files
from deployments.storage.scratch import scratch_folder

PAGE_BYTES = 4096
"""Tensors begin at a multiple of it as far as their lengths allow: a disk and the system read by pages."""
HELD_BYTES = 256 * 1024 * 1024
"""Of tensors that are read and cast together; the memory that preparing takes."""
ALSO = (PREVIEW, "README.md", "LICENSE", "LICENSE.md")
"""Beside the pipeline's index, copied where they are there."""
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_ROOM_BYTES = 16 * 1024 * 1024  # for small files

Progress = Callable[[str, int, int], object]
"""Is told a part, how many of its bytes are written, and how many there are."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a prepared model is to hold."""

    dtypes: Mapping[str, DtypeName]  # of the parts that have weights
    vae_encoder: bool = False  # whether the VAE keeps the half that no stage uses

    @property
    def parts(self) -> tuple[Part, ...]:
        return (TEXT_ENCODER, TRANSFORMER, WHOLE_VAE if self.vae_encoder else VAE)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written."""

    folder: Path
    nbytes: dict[str, int]  # of the weights, by part


def prepare_model(
    source: Path,
    target: Path,
    wanted: Wanted,
    progress: Progress = lambda part, done, total: None,
    free: Callable[[Path], int] = free_bytes,
) -> Prepared:
    """Write a model into a folder, which is there whole or not at all. Blocks.

    It is written in a folder beside, which is removed when this ends in any way, and when another run finds it after
    this process was killed.

    Args:
        source: of the model; its layout was checked.
        target: made anew; an empty folder will do.
        free: bytes on the disk of a folder.

    Raises:
        PermanentError: `target_unusable`: it is not empty, has no room or cannot be written; else as `plan_part`.
    """
    check_target(target)
    plans = {part.name: plan_part(source, part, wanted.dtypes[part.name]) for part in wanted.parts}
    layouts = {name: _layout(plan) for name, plan in plans.items()}
    try:
        parent = target.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        _check_room(parent, sum(layout.nbytes for layout in layouts.values()), free)
        with scratch_folder(f".{target.name}-", parent) as scratch:
            draft = scratch / "model"
            _write(draft, source, wanted, plans, layouts, progress)
            check_layout(FolderFiles(draft), PARTS, wanted.dtypes)
            draft.replace(target)
            _sync(parent)
    except OSError as error:
        raise PermanentError("target_unusable", f"{target} cannot be written: {error.strerror or error}") from error
    return Prepared(target, {name: layout.nbytes for name, layout in layouts.items()})


def check_target(target: Path) -> None:
    """Raises PermanentError `target_unusable` if there is something that would be overwritten."""
    try:
        used = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise PermanentError("target_unusable", f"{target} cannot be read: {error.strerror}") from error
    if used:
        raise PermanentError("target_unusable", f"{target} is not empty; name a new folder, or remove it before")


def _check_room(parent: Path, nbytes: int, free: Callable[[Path], int]) -> None:
    needed, there = nbytes + _ROOM_BYTES, free(parent)
    if needed > there:
        raise PermanentError(
            "target_unusable",
            f"{parent} has {there / 1e9:.1f} GB free, and the model takes {needed / 1e9:.1f} GB; make room, or name a "
            "folder on another disk",
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The file of a part."""

    start: bytes  # what precedes the tensors
    order: tuple[str, ...]
    sizes: dict[str, int]  # in bytes, by name

    @property
    def nbytes(self) -> int:
        return len(self.start) + sum(self.sizes.values())


def _layout(plan: PartPlan) -> _Layout:
    """First what fills whole pages, so that each of these begins at one; then the rest, the larger types before."""
    forms = {name: (dtype, stored.shape) for name, (stored, dtype) in plan.wanted.items()}
    if plan.positions is not None:
        forms[POSITIONS] = (torch.float32, tuple(plan.positions.shape))
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, (dtype, shape) in forms.items()}
    order = sorted(forms, key=lambda name: (sizes[name] % PAGE_BYTES != 0, -forms[name][0].itemsize, name))
    described = {name: (_NAMES[forms[name][0]], forms[name][1]) for name in order}
    # The libraries that read it too want to know whose file it is.
    return _Layout(safetensors_start(described, {"format": "pt"}, PAGE_BYTES), tuple(order), sizes)


def _write(
    draft: Path,
    source: Path,
    wanted: Wanted,
    plans: Mapping[str, PartPlan],
    layouts: Mapping[str, _Layout],
    progress: Progress,
) -> None:
    draft.mkdir()
    hashes = _copy_small(draft, source, wanted)
    chunks = {}
    for name, plan in plans.items():
        file = f"{name}/{STEMS[name]}.safetensors"
        written = _write_weights(draft / file, plan, layouts[name], partial(progress, name))
        hashes[file], chunks[file] = written.sha256, written.chunks
    hashes[CHUNK_LIST] = _write_file(draft / CHUNK_LIST, ChunkList(CHUNK_BYTES, chunks).encode())
    lines = (f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    _write_file(draft / CHECKSUMS, "".join(lines).encode())
    for folder in (*(draft / name for name in PARTS), draft):
        _sync(folder)


def _copy_small(draft: Path, source: Path, wanted: Wanted) -> dict[str, str]:
    """Copy what holds no weights; returns SHA-256 by name."""
    files = FolderFiles(source)
    weights = {
        f"{part}/{name}" for part in STEMS for name in part_weights(files, part, part_dtype(wanted.dtypes, part)).names
    }
    for part in PARTS:
        (draft / part).mkdir()
    names = {*needed_files(files.sizes, PARTS, wanted.dtypes), *(name for name in ALSO if name in files.sizes)}
    return {
        name: _write_file(draft / name, (source / name).read_bytes())
        for name in sorted(names - weights - {CHECKSUMS, CHUNK_LIST})
    }


def _write_file(path: Path, data: bytes) -> str:
    """Write a file to the disk; returns its SHA-256."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class _Written:
    """Hashes of a file."""

    sha256: str
    chunks: tuple[str, ...]


def _write_weights(path: Path, plan: PartPlan, layout: _Layout, progress: Callable[[int, int], object]) -> _Written:
    """Read, cast and write the tensors of a part, a few at a time."""
    digest, chunks = hashlib.sha256(layout.start), ChunkHasher()
    chunks.update(layout.start)
    done = len(layout.start)
    with path.open("xb", buffering=0) as file:
        file.write(layout.start)
        for names in _groups(layout):
            for tensor in _tensors(plan, names):
                data = tensor.reshape(-1).view(torch.uint8).numpy().data
                digest.update(data)
                chunks.update(data)
                while data:
                    data = data[file.write(data) :]
                done += tensor.nbytes
                progress(done, layout.nbytes)
        os.fsync(file.fileno())
    return _Written(digest.hexdigest(), chunks.hashes())


def _groups(layout: _Layout) -> Iterator[list[str]]:
    """Names in order, as many at once as may be held."""
    group: list[str] = []
    held = 0
    for name in layout.order:
        if group and held + layout.sizes[name] > HELD_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += layout.sizes[name]
    if group:
        yield group


def _tensors(plan: PartPlan, names: Sequence[str]) -> list[Tensor]:
    read = read_tensors({name: plan.wanted[name] for name in names if name in plan.wanted}, torch.device("cpu"))
    if plan.positions is not None:
        read[POSITIONS] = plan.positions
    return [read[name] for name in names]


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
