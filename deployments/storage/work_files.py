"""The objects that one stage of a job leaves for the next: prompt embeddings, checkpoints, final latents.

Each is a safetensors object whose header says what it is and what made it: the format, its own key in the store (so the
job and the stage), the model's revision and dtype, the request as JSON, and a SHA-256 over all of these and every
tensor's bytes. Who reads one checks all of them: no work is ever finished by another model, or for another job.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deployments.errors import InputUnusableError, PermanentError
from deployments.messages import VideoSpec
from deployments.storage.models.safetensors_file import safetensors_header
from deployments.storage.object_store import Store

FORMAT = "mochi-serve-work-2"
HEADER = "mochi-serve"  # the entry of the safetensors header that holds ours, as JSON
CONTENT_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class WorkLabel:
    """What a work file is for, and what made it."""

    key: str  # of the object in the store
    revision: str  # of the model's parts whose work is in it, see `work_revision`
    dtype: str  # of the model
    spec: VideoSpec


def pack(label: WorkLabel, tensors: Mapping[str, Tensor], **more: str) -> bytes:
    """The tensors as one object. more: further entries of its header."""
    kept = _apart({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    header = more | {
        "format": FORMAT,
        "key": label.key,
        "revision": label.revision,
        "dtype": label.dtype,
        "spec": json.dumps(label.spec.to_json(), sort_keys=True),
    }
    header["sha256"] = _checksum(header, kept)
    # One entry: safetensors writes several in an order that changes, and the same work is to be the same bytes.
    return save(kept, metadata={HEADER: json.dumps(header, sort_keys=True)})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, each in memory of its own, as safetensors wants them: two texts that are one share their embeddings."""
    taken: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    return apart


def unpack(label: WorkLabel, data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of an object that `pack` made with this label.

    Raises:
        InputUnusableError: it is damaged or foreign; the text says in what.
    """
    header, tensors = _parse(label.key, data)
    if header.get("format") != FORMAT:
        raise refused(label.key, f"its format is {header.get('format')!r}, not {FORMAT!r}")
    if header.pop("sha256", "") != _checksum(header, tensors):
        raise refused(label.key, "its checksum does not fit: it is damaged")
    if header["key"] != label.key:
        raise refused(label.key, f"it was written as {header['key']}")
    for name, wanted in (("revision", label.revision), ("dtype", label.dtype)):
        if header[name] != wanted:
            raise refused(label.key, f"its {name} is {header[name]!r}, this model's is {wanted!r}")
    if json.loads(header["spec"]) != label.spec.to_json():
        raise refused(label.key, "it was made for another request")
    return header, tensors


async def read_input(store: Store, label: WorkLabel) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What the stage before left, checked as `unpack` does.

    Raises:
        InputUnusableError: it is gone, damaged or foreign.
        StorageUnavailableError: the store is away, or refuses.
    """
    try:
        data = await store.get(label.key)
    except PermanentError as error:
        if error.code != "object_missing":
            raise
        raise InputUnusableError(error.message) from error
    return await asyncio.to_thread(unpack, label, data)


def refused(key: str, why: str) -> InputUnusableError:
    """The error of a work file that must not be used."""
    return InputUnusableError(f"{key} is refused: {why}")


def check_finite(key: str, latents: Tensor) -> None:
    """Raises InputUnusableError unless all latents are numbers."""
    if not bool(torch.isfinite(latents).all()):
        raise refused(key, "its latents are not finite")


def _parse(key: str, data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        tensors = load(data)
        metadata = safetensors_header(BytesIO(data)).get("__metadata__", {})
        header = json.loads(metadata.get(HEADER, "{}"))
    except (SafetensorError, ValueError) as error:
        raise refused(key, f"it is no whole safetensors object ({error})") from None
    return header, tensors


def _checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(dict(sorted(header.items()))).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
