"""Which model a stage's output is the work of: the same name in every replica, whatever parts lie on its machine."""

import asyncio
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deployments.messages import Stage
from deployments.settings import ModelSettings
from deployments.storage.model_store import FINGERPRINT_CHARS, OpenBucket, model_fingerprint, read_index
from deployments.storage.object_store import Bucket

PARTS: dict[Stage, tuple[str, ...]] = {
    Stage.ENCODING: ("tokenizer", "text_encoder"),
    Stage.SAMPLING: ("tokenizer", "text_encoder", "transformer"),
}
"""The parts of the model whose work is in what a stage leaves for the next."""

_HUB_SNAPSHOTS = "snapshots"


def work_revision(model: ModelSettings, folder: Path, stage: Stage, open_bucket: OpenBucket) -> str:
    """A name for exactly the parts of the model that make the output of `stage`: 16 hex digits. Blocks.

    A replica holds its own parts alone, and must know the others too: what is in a bucket is named by
    the names, sizes and ETags of its files, what the hub gave by the commit, a folder by its contents
    (`model_fingerprint`). The same weights from another kind of source are another model.

    Args:
        model: with the source.
        folder: that `model_folder` gave.
        stage: ENCODING or SAMPLING; the decoder leaves nothing for a next stage.
        open_bucket: as in `model_folder`.

    Raises:
        PermanentError: `model_incomplete`, as `model_fingerprint` does.
        StorageUnavailableError: the object store could not be reached.
    """
    parts = PARTS[stage]
    if model.source.startswith("s3://"):
        contents = _bucket_contents(model.source, parts, open_bucket)
    elif folder.parent.name == _HUB_SNAPSHOTS:
        contents = f"commit {folder.name}"
    else:
        contents = model_fingerprint(folder, parts, model.dtype)
    zeroes_empty = bool(read_index(folder).get("force_zeros_for_empty_prompt", False))
    return hashlib.sha256(json.dumps([*parts, contents, zeroes_empty]).encode()).hexdigest()[:FINGERPRINT_CHARS]


def _bucket_contents(source: str, parts: tuple[str, ...], open_bucket: OpenBucket) -> str:
    name, _, prefix = source.removeprefix("s3://").partition("/")
    bucket = open_bucket(name)
    with ThreadPoolExecutor(1) as pool:  # the thread's own event loop may be running
        return pool.submit(lambda: asyncio.run(_listing(bucket, prefix.strip("/"), parts))).result()


async def _listing(bucket: Bucket, prefix: str, parts: tuple[str, ...]) -> str:
    entries = []
    for part in parts:
        for key in sorted(await bucket.list_keys(f"{prefix}/{part}/")):
            found = await bucket.stat(key)
            entries.append([key.removeprefix(prefix), found and found.size, found and found.etag])
    return json.dumps(entries)
