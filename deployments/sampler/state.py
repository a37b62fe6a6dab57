"""The whole state of a half-made video as one object, and the objects of a job in storage: its checkpoints.

A checkpoint is what another replica goes on from, after this one parked the sample or died. It is a safetensors
object. Its tensors: `latents` [12, T, H/8, W/8] fp32 and the encoded prompts (`prompt_embeds` and `negative_embeds`
[L, D], `prompt_mask` and `negative_mask` [L] bool). Its header: format, model revision, dtype, step, the request
itself as JSON, and a SHA-256 over all of these and every tensor's bytes. Sigmas and noise are not in it: they follow
from the request.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deployments.errors import PermanentError
from deployments.keys import checkpoint_key, checkpoint_prefix
from deployments.messages import VideoSpec
from deployments.replica.running_task import logger
from deployments.storage.model_store import safetensors_header
from deployments.storage.object_store import Store

FORMAT = "mochi-serve-sample-1"
EMBEDS = ("prompt_embeds", "prompt_mask", "negative_embeds", "negative_mask")
KEPT_CHECKPOINTS = 2  # of each job: the newest and, should that be damaged, the one before


class CheckpointRefusedError(PermanentError):
    """A checkpoint that must not be used: damaged, or made by another model or for another request."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__("checkpoint_refused", f"checkpoint {name} is refused: {why}")


@dataclass(frozen=True, slots=True)
class SampleState:
    """A sample after `step` denoising steps, on the CPU."""

    spec: VideoSpec
    revision: str
    """Of the transformer that made it, see `model_store.model_fingerprint`; to another one its latents mean nothing."""
    dtype: str  # of that transformer
    step: int
    latents: Tensor  # [12, T, H/8, W/8] fp32
    embeds: Mapping[str, Tensor]  # the encoded prompts, by the names of EMBEDS


def pack(state: SampleState) -> bytes:
    """The state as one object."""
    tensors = {"latents": state.latents.float().cpu().contiguous()}
    tensors |= {name: state.embeds[name].cpu().contiguous() for name in EMBEDS}
    header = {
        "format": FORMAT,
        "revision": state.revision,
        "dtype": state.dtype,
        "step": str(state.step),
        "spec": json.dumps(asdict(state.spec), sort_keys=True),
    }
    return save(tensors, metadata=header | {"sha256": _checksum(header, tensors)})


def unpack(name: str, data: bytes, spec: VideoSpec, revision: str, dtype: str) -> SampleState:
    """Read a state back.

    Args:
        name: of the checkpoint, for the error.
        data: what `pack` made.
        spec: the request that it must have been made for.
        revision: of the transformer that must have made it.
        dtype: of that transformer.

    Raises:
        CheckpointRefusedError: it is damaged or foreign; the text says in what.
    """
    header, tensors = _parse(name, data)
    if header.get("format") != FORMAT:
        raise CheckpointRefusedError(name, f"its format is {header.get('format')!r}, not {FORMAT!r}")
    checksum = header.pop("sha256", "")
    if checksum != _checksum(header, tensors):
        raise CheckpointRefusedError(name, "its checksum does not fit: it is damaged")
    for key, wanted in (("revision", revision), ("dtype", dtype)):
        if header[key] != wanted:
            raise CheckpointRefusedError(name, f"its {key} is {header[key]!r}, this model's is {wanted!r}")
    if json.loads(header["spec"]) != asdict(spec):
        raise CheckpointRefusedError(name, "it was made for another request")
    return _checked_state(name, header, tensors, spec)


def _parse(name: str, data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        tensors = load(data)
        header = safetensors_header(BytesIO(data)).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise CheckpointRefusedError(name, f"it is no whole safetensors object ({error})") from None
    return header, tensors


def _checked_state(name: str, header: dict[str, str], tensors: dict[str, Tensor], spec: VideoSpec) -> SampleState:
    step = int(header["step"])
    latents = tensors.pop("latents")
    if tuple(latents.shape) != spec.clip.latents or not 0 <= step <= spec.num_inference_steps:
        raise CheckpointRefusedError(name, f"step {step} and latents {tuple(latents.shape)} do not fit the request")
    if not bool(torch.isfinite(latents).all()):
        raise CheckpointRefusedError(name, "its latents are not finite")
    return SampleState(spec, header["revision"], header["dtype"], step, latents, tensors)


def _checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(dict(sorted(header.items()))).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Checkpoints:
    """Writes and reads the states of one model's samples in object storage, the newest two of each job.

    Args:
        store: where they lie.
        revision: of the transformer; a state that another one made is refused.
        dtype: of the transformer; a state of another is refused.
    """

    def __init__(self, store: Store, revision: str, dtype: str) -> None:
        self._store = store
        self._revision = revision
        self._dtype = dtype

    async def newest(self, job_id: str, spec: VideoSpec) -> SampleState | None:
        """The last whole state of the job, None if there is none; one that is refused or missing is logged."""
        for key in reversed(await self._keys(job_id)):
            try:
                data = await self._store.get(key)
                return await asyncio.to_thread(unpack, key, data, spec, self._revision, self._dtype)
            except PermanentError as error:
                logger.warning("%s; the one before is tried, or the job starts from step 0", error)
        return None

    async def save(self, job_id: str, state: SampleState) -> None:
        """Write the state whole, and only then delete the others but the newest before it.

        Those of later steps are deleted too: the job would have gone on from them had they not been refused.
        """
        data = await asyncio.to_thread(pack, state)
        written = checkpoint_key(job_id, state.step)
        await self._store.put(written, data, "application/octet-stream")
        keys = await self._keys(job_id)
        kept = [key for key in keys if key <= written][-KEPT_CHECKPOINTS:]
        for key in keys:
            if key not in kept:
                await self._store.delete(key)

    async def _keys(self, job_id: str) -> list[str]:
        return sorted(await self._store.list_keys(checkpoint_prefix(job_id)))
