"""The whole state of a half-made video as one object, and the objects of a job in storage: its checkpoints.

A checkpoint is what another replica goes on from, after this one parked the sample or died. It is a work file
(`deployments.storage.work_files`) with the step in its header. Its tensors: `latents` [12, T, H/8, W/8] fp32 and the
encoded prompts (`prompt_embeds` and `negative_embeds` [L, D], `prompt_mask` and `negative_mask` [L] bool). Sigmas and
noise are not in it: they follow from the request. Of a quality that reuses the blocks of earlier steps there is one
only between steps that need nothing else (`StepPlan.resumable`).
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from deployments.errors import InputUnusableError, PermanentError
from deployments.keys import checkpoint_key, checkpoint_prefix
from deployments.messages import VideoSpec
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from deployments.mochi.loras import unknown_lora
from deployments.replica.running_task import logger
from deployments.storage import work_files
from deployments.storage.object_store import Store
from deployments.storage.work_files import CONTENT_TYPE, WorkLabel, check_finite, refused

EMBEDS = ("prompt_embeds", "prompt_mask", "negative_embeds", "negative_mask")
KEPT_CHECKPOINTS = 2  # of each job: the newest and, should that be damaged, the one before


@dataclass(frozen=True, slots=True)
class SampleState:
    """A sample after `step` denoising steps, on the CPU."""

    spec: VideoSpec
    revision: str
    """Of the weights that made it, see `sample_revision`; to others its latents and embeddings mean nothing."""
    dtype: str  # of that model
    step: int
    latents: Tensor  # [12, T, H/8, W/8] fp32
    embeds: Mapping[str, Tensor]  # the encoded prompts, by the names of EMBEDS


def sample_revision(revision: str, spec: VideoSpec, loras: Mapping[str, str]) -> str:
    """A name for exactly the weights that make a sample: those of the model, and of its LoRA if it has one.

    A LoRA's name may come to mean other weights; what the old ones began is not finished by the new ones.

    Args:
        revision: of the model, see `work_revision`.
        spec: of the sample.
        loras: the digest of each LoRA, see `LoraFiles`.

    Raises:
        PermanentError: `lora_unknown`, there is none of its name.
    """
    choice = spec.lora_choice
    if choice is None:
        return revision
    if choice.name not in loras:
        raise unknown_lora(choice.name, loras)
    return f"{revision}+{loras[choice.name]}"


def pack(key: str, state: SampleState) -> bytes:
    """The state as the object with this key."""
    tensors = {"latents": state.latents.float()} | {name: state.embeds[name] for name in EMBEDS}
    return work_files.pack(WorkLabel(key, state.revision, state.dtype, state.spec), tensors, step=str(state.step))


def unpack(key: str, data: bytes, spec: VideoSpec, revision: str, dtype: str) -> SampleState:
    """Read a state back.

    Args:
        key: of the object.
        data: what `pack` made.
        spec: the request that it must have been made for.
        revision: of the weights that must have made it, see `sample_revision`.
        dtype: of that model.

    Raises:
        InputUnusableError: it is damaged or foreign; the text says in what.
    """
    header, tensors = work_files.unpack(WorkLabel(key, revision, dtype, spec), data)
    step = int(header.get("step", -1))
    latents = tensors.pop("latents")
    if tuple(latents.shape) != spec.clip.latents or not 0 <= step <= spec.num_inference_steps:
        raise refused(key, f"step {step} and latents {tuple(latents.shape)} do not fit the request")
    if not spec.plan.resumable(step):
        raise refused(key, f"the step after {step} reuses what the one before it computed, which is in no checkpoint")
    check_finite(key, latents)
    return SampleState(spec, revision, dtype, step, latents, tensors)


@contextmanager
def counting_checkpoint() -> Iterator[list[int]]:
    """Around the writing of a checkpoint, which appends its bytes when it is written; one that fails is none."""
    begun = time.perf_counter()
    size: list[int] = []
    yield size
    RECORDER.observe(names.CHECKPOINT_SECONDS, time.perf_counter() - begun)
    RECORDER.count(names.CHECKPOINTS)
    RECORDER.count(names.CHECKPOINT_BYTES, by=sum(size))


class Checkpoints:
    """Writes and reads the states of one model's samples in object storage, the newest two of each job.

    Args:
        store: where they lie.
        revision: of the weights, see `sample_revision`; a state that another one made is refused.
        dtype: of the model; a state of another is refused.
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
            except (InputUnusableError, PermanentError) as error:
                logger.warning("%s; the one before is tried, or the job starts from step 0", error)
        return None

    async def save(self, job_id: str, state: SampleState) -> None:
        """Write the state whole, and only then delete the others but the newest before it.

        Those of later steps are deleted too: the job would have gone on from them had they not been refused.
        """
        written = checkpoint_key(job_id, state.step)
        with counting_checkpoint() as size:
            data = await asyncio.to_thread(pack, written, state)
            await self._store.put(written, data, CONTENT_TYPE)
            size.append(len(data))
        keys = await self._keys(job_id)
        kept = [key for key in keys if key <= written][-KEPT_CHECKPOINTS:]
        for key in keys:
            if key not in kept:
                await self._store.delete(key)

    async def _keys(self, job_id: str) -> list[str]:
        return sorted(await self._store.list_keys(checkpoint_prefix(job_id)))
