"""The transformer's `pos_frequencies` in float32, whatever its other weights are in.

The rotary embedding multiplies these frequencies by positions of up to some hundred, so that in bfloat16 the angles are
off by 0.1 rad and more: the largest error of a model in bfloat16, by a tensor of 18 KB. The authors' code warns unless
it is float32. A model that is published in both has it in the float32 shards; of a hub or a bucket only the bfloat16
ones are fetched, and this tensor alone is read from the others, by ranges, and kept beside them.
"""

import hashlib
import logging
import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from deployments.atomic_write import write_atomically
from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.storage.models.layout import (
    FolderFiles,
    ModelFiles,
    StoredTensor,
    part_weights,
    read_json,
    shard_tensors,
)
from deployments.storage.models.safetensors_file import safetensors_header, safetensors_start
from deployments.storage.models.weight_files import WeightFiles

PART = "transformer"
TENSOR = "pos_frequencies"
KEPT = f"{PART}/{TENSOR}.safetensors"
"""Holds the tensor with its SHA-256, or no tensor where its source has none in float32."""

_EXACT = ("F32", "F64")
_ROUNDING = 2**-7  # relative, the most that bfloat16 may be off, by truncation too
_UNDERFLOW = 2**-24  # absolute, of float16
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Positions:
    """The tensor in float32."""

    data: bytes  # little endian
    shape: tuple[int, ...]
    origin: str  # the file it comes from, for people

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def exact_positions(files: ModelFiles, dtype: DtypeName) -> Positions | None:
    """What is used instead of the tensor that lies among the weights chosen for `dtype`.

    None where that one is used: it is float32 itself, or there is none in float32 among these files.
    """
    stored = _rounded(files, dtype)
    return None if stored is None else _of_one_model(files, stored, _in_float32(files))


def positions_known(files: ModelFiles, dtype: DtypeName) -> bool:
    """Whether these files tell the tensor in float32, or that their source has none."""
    return _rounded(files, dtype) is None or _in_float32(files) is not None or _read_kept(files) is not None


def bring_positions(source: ModelFiles, folder: Path, dtype: DtypeName) -> None:
    """Read the tensor from the float32 files of a source, unless it is known, and keep it beside the weights.

    Args:
        source: of which the weights in `folder` were fetched, as they are there.
        folder: of the model in the cache, with the transformer's weights for `dtype`.

    Raises:
        OSError: the cache cannot be written.
        WorkerError: the source could not be read, or was changed.
    """
    local = FolderFiles(folder)
    if positions_known(local, dtype):
        return
    stored = _rounded(local, dtype)
    found = None if stored is None else _of_one_model(local, stored, _in_float32(source))
    write_atomically(folder / KEPT, _packed(found))
    where = "has none in float32" if found is None else f"in float32 is taken from {found.origin}"
    _logger.info("%s: %s of the transformer %s", source.where, TENSOR, where)


def _rounded(files: ModelFiles, dtype: DtypeName) -> StoredTensor | None:
    """The tensor among the weights for `dtype`; None where it is exact, or where other checks tell what is wrong.

    For a model in float32 its weights in float32 are chosen wherever there are any.
    """
    if dtype == "float32":
        return None
    try:
        stored = _find(files, part_weights(files, PART, dtype))
    except PermanentError as error:
        if error.code != "model_incomplete":
            raise
        return None
    return None if stored is None or stored.info.dtype in _EXACT else stored


def _in_float32(files: ModelFiles) -> Positions | None:
    """From the weights in float32 if they are among the files, else as it was kept."""
    try:
        stored = _find(files, part_weights(files, PART, "float32"))
        if stored is not None and stored.info.dtype == "F32":
            return Positions(_read(files, stored), stored.info.shape, f"{files.where}/{stored.file}")
    except PermanentError as error:
        if error.code != "model_incomplete":
            raise
        _logger.warning("%s is not taken from there in float32: %s", TENSOR, error.message)
    kept = _read_kept(files)
    return kept.positions if kept is not None else None


def _find(files: ModelFiles, weights: WeightFiles) -> StoredTensor | None:
    """The tensor among these weights; of several shards only one header is read."""
    shard: object = weights.shards[0]
    if weights.index is not None:
        places = read_json(files, f"{PART}/{weights.index}").get("weight_map")
        shard = places.get(TENSOR) if isinstance(places, dict) else None
    if shard not in weights.shards:
        return None
    info = shard_tensors(files, f"{PART}/{shard}").get(TENSOR)
    return None if info is None else StoredTensor(f"{PART}/{shard}", info)


def _read(files: ModelFiles, stored: StoredTensor) -> bytes:
    try:
        data = files.read(stored.file, stored.info.offset, stored.info.nbytes)
    except OSError as error:
        raise PermanentError("model_incomplete", f"{files.where}/{stored.file} cannot be read: {error}") from error
    if len(data) != stored.info.nbytes:
        raise PermanentError("model_incomplete", f"{files.where}/{stored.file} is cut short; fetch or copy it again")
    return data


def _of_one_model(files: ModelFiles, stored: StoredTensor, exact: Positions | None) -> Positions | None:
    """`exact` if rounding it gives what is stored: both variants are then of one model."""
    if exact is None:
        return None
    if exact.shape == stored.info.shape and _is_rounded_from(exact.data, stored.info.dtype, _read(files, stored)):
        return exact
    _logger.warning(
        "%s in %s is another model's than in %s: the latter is used as it is",
        TENSOR,
        exact.origin,
        f"{files.where}/{stored.file}",
    )
    return None


def _is_rounded_from(exact: bytes, dtype: str, stored: bytes) -> bool:
    """Whether values in float32 are those in bfloat16 or float16 but for rounding."""
    count = len(stored) // 2
    if dtype == "BF16":
        stored, form = b"".join(b"\0\0" + stored[2 * i : 2 * i + 2] for i in range(count)), "f"
    elif dtype == "F16":
        form = "e"
    else:
        return False
    pairs = zip(struct.unpack(f"<{count}f", exact), struct.unpack(f"<{count}{form}", stored), strict=True)
    return all(abs(a - b) <= _ROUNDING * abs(a) + _UNDERFLOW for a, b in pairs)


@dataclass(frozen=True, slots=True)
class _Kept:
    positions: Positions | None


def _packed(positions: Positions | None) -> bytes:
    if positions is None:
        return safetensors_start({}, {"source": "none in float32"})
    metadata = {"source": positions.origin, "sha256": positions.sha256}
    return safetensors_start({TENSOR: ("F32", positions.shape)}, metadata) + positions.data


def _read_kept(files: ModelFiles) -> _Kept | None:
    """None where nothing was kept, or not as it was written."""
    if KEPT not in files.sizes:
        return None
    try:
        file = BytesIO(files.read(KEPT, 0, files.sizes[KEPT]))
        header = safetensors_header(file)
        metadata = header.pop("__metadata__")
        if not header and metadata["source"]:
            return _Kept(None)
        entry = header[TENSOR]
        positions = Positions(file.read(), tuple(entry["shape"]), f"{files.where}/{KEPT}")
        if entry["dtype"] != "F32" or positions.sha256 != metadata["sha256"]:
            raise ValueError(f"its SHA-256 is not {metadata['sha256']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("%s/%s is damaged and not used: %s", files.where, KEPT, error)
        return None
    return _Kept(positions)
