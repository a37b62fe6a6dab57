"""The files of the model wherever they lie, and how large its weights are, by their headers alone."""

from pathlib import Path

from deployments.errors import MochiServeError
from deployments.settings import StorageSettings
from deployments.storage.models.bucket import BucketFiles
from deployments.storage.models.hub import whole_snapshot
from deployments.storage.models.layout import FolderFiles, ModelFiles, part_tensors, part_weights
from deployments.storage.models.safetensors_file import DTYPE_BYTES
from deployments.storage.models.store import SourceKind, bucket_prefix, source_kind
from deployments.storage.models.weight_files import PARTS
from deployments.storage.object_store import ObjectStore
from serve_app.config import WEIGHTED_PARTS, AppSettings
from serve_app.doctor.surroundings import Surroundings

STORE_READ_S = 5.0
"""Seconds without a byte of an answer after which a store counts as away."""
# Of the transformer's weights in bfloat16; see tests/unit/sampler/test_card_profiles.py.
OF_8_BITS = {"int8": 0.51, "fp8": 0.73}
_BYTES = {"float32": 4, "bfloat16": 2}
_UNUSED = {"vae": "encoder."}


def model_files(s: Surroundings) -> ModelFiles | None:
    """None: they are nowhere yet where they can be looked at.

    Raises:
        WorkerError: they cannot be looked at, or the source is none.
    """
    model = s.settings.model
    kind = source_kind(model.source)
    if kind is SourceKind.FOLDER:
        return FolderFiles(Path(model.source).expanduser())
    if kind is SourceKind.HUB:
        snapshot = whole_snapshot(model.source, model.revision, PARTS, s.settings.dtypes)
        return None if snapshot is None else FolderFiles(snapshot)
    if s.storage is None:
        return None
    name, prefix = bucket_prefix(model.source)
    return BucketFiles(model.source, open_bucket(s.storage, name), prefix)


def open_bucket(storage: StorageSettings, name: str) -> ObjectStore:
    """A bucket of the store, whose requests do not wait for long."""
    return ObjectStore(storage.model_copy(update={"bucket": name}), STORE_READ_S, STORE_READ_S)


def weights_by_part(s: Surroundings) -> dict[str, int] | None:
    """Bytes of each part's weights as its stage holds them; None where that is not known."""
    try:
        files = model_files(s)
        if files is None:
            return None
        return {part: _weight_bytes(s.settings, files, part) for part in WEIGHTED_PARTS.values()}
    except (MochiServeError, OSError):
        return None  # what is wrong with it, the check of the model tells


def weights_on_cpu(s: Surroundings) -> dict[str, int] | None:
    """As `weights_by_part`, of the stages that no GPU is given to; several replicas count as often."""
    weights = weights_by_part(s)
    if weights is None:
        return None
    stages = {part: s.settings.stage(stage) for stage, part in WEIGHTED_PARTS.items()}
    return {part: weights[part] * max(1, one.min_replicas) for part, one in stages.items() if not one.num_gpus}


def _weight_bytes(settings: AppSettings, files: ModelFiles, part: str) -> int:
    dtype = settings.dtypes[part]
    unused = _UNUSED.get(part)
    tensors = part_tensors(files, part, part_weights(files, part, dtype))
    numbers = sum(
        tensor.info.nbytes // DTYPE_BYTES.get(tensor.info.dtype, 4)
        for name, tensor in tensors.items()
        if unused is None or not name.startswith(unused)
    )
    weights = settings.model.weights
    if part == "transformer" and weights is not None:
        return int(numbers * _BYTES["bfloat16"] * OF_8_BITS[weights])
    return numbers * _BYTES[dtype]
