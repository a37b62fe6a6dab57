"""Which model a stage's output is the work of: the same name in every replica, whatever parts lie on its machine."""

import hashlib
import json
from pathlib import Path

from deployments.dtypes import Dtypes, part_dtype
from deployments.messages import Stage
from deployments.settings import ModelSettings
from deployments.storage.models import positions
from deployments.storage.models.store import (
    FINGERPRINT_CHARS,
    OpenBucket,
    SourceKind,
    bucket_prefix,
    model_fingerprint,
    source_kind,
    zeroes_empty_prompt,
)
from deployments.storage.models.weight_files import STEMS

PARTS: dict[Stage, tuple[str, ...]] = {
    Stage.ENCODING: ("tokenizer", "text_encoder"),
    Stage.SAMPLING: ("tokenizer", "text_encoder", "transformer"),
}
"""The parts of the model whose work is in what a stage leaves for the next."""

_HUB_SNAPSHOTS = "snapshots"


def work_revision(model: ModelSettings, dtypes: Dtypes, folder: Path, stage: Stage, open_bucket: OpenBucket) -> str:
    """A name for exactly the parts of the model that make the output of `stage`: 16 hex digits. Blocks.

    A replica holds its own parts alone, and must know the others too: what is in a bucket is named by
    the names, sizes and ETags of its files, what the hub gave by the commit, a folder by its contents
    (`model_fingerprint`). The same weights from another kind of source are another model, and so are the
    same weights with another way to encode an empty prompt, or with parts in different dtypes, or with a
    transformer in 8 bits. The dtype that all parts share is not in it: a work file says that of the stage that
    made it beside the revision.

    Args:
        model: with the source.
        dtypes: that these parts compute in.
        folder: that `model_folder` gave.
        stage: ENCODING or SAMPLING; the decoder leaves nothing for a next stage.
        open_bucket: as in `model_folder`.

    Raises:
        PermanentError: `model_incomplete`, as `model_fingerprint` does.
        StorageUnavailableError: the object store could not be reached.
    """
    parts = PARTS[stage]
    # What a hub or a bucket has decides where the positions come from (`positions.bring_positions`): all replicas of
    # this release do the same.
    exact = positions.PART in parts and part_dtype(dtypes, positions.PART) != "float32"
    rule = " positions in float32" if exact else ""
    if source_kind(model.source) is SourceKind.BUCKET:
        contents = _bucket_contents(model.source, parts, open_bucket) + rule
    elif folder.parent.name == _HUB_SNAPSHOTS:
        contents = f"commit {folder.name}{rule}"
    else:
        contents = model_fingerprint(folder, parts, dtypes)
    zeroes_empty = zeroes_empty_prompt(folder, model.zero_empty_prompt)
    computed = [part_dtype(dtypes, part) for part in parts if part in STEMS]
    mixed = [computed] if len(set(computed)) > 1 else []
    quantised = [f"weights {model.weights}"] if model.weights and positions.PART in parts else []
    name = json.dumps([*parts, contents, zeroes_empty, *mixed, *quantised])
    return hashlib.sha256(name.encode()).hexdigest()[:FINGERPRINT_CHARS]


def _bucket_contents(source: str, parts: tuple[str, ...], open_bucket: OpenBucket) -> str:
    name, prefix = bucket_prefix(source)
    bucket = open_bucket(name)
    entries = []
    for part in parts:
        listed = sorted(bucket.list_objects(f"{prefix}/{part}/"), key=lambda found: found.key)
        entries += [[found.key.removeprefix(prefix), found.size, found.etag] for found in listed]
    return json.dumps(entries)
