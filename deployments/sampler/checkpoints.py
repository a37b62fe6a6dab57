"""Checkpoints of samples in object storage: the newest two of each job, by step."""

import asyncio

from deployments.errors import PermanentError
from deployments.messages import VideoSpec, checkpoint_key, checkpoint_prefix
from deployments.replica.connections import Store
from deployments.replica.running_task import logger
from deployments.sampler.state import SampleState, pack, unpack

KEEP = 2


class Checkpoints:
    """Writes and reads the states of one model's samples.

    Args:
        revision, dtype: of the model; a state of another is refused.
    """

    def __init__(self, store: Store, revision: str, dtype: str) -> None:
        self._store = store
        self._revision = revision
        self._dtype = dtype

    async def newest(self, job_id: str, spec: VideoSpec) -> SampleState | None:
        """The last whole state of the job, None if there is none; what is refused or gone is logged by its name."""
        for key in reversed(await self._keys(job_id)):
            try:
                data = await self._store.get(key)
                return await asyncio.to_thread(unpack, key, data, spec, self._revision, self._dtype)
            except PermanentError as error:
                logger.warning("%s; the one before is tried, or the job starts from step 0", error)
        return None

    async def save(self, job_id: str, state: SampleState) -> None:
        """Write the state whole, and only then delete the others but the newest before it.

        Those of later steps go too: the job would have gone on from them had they not been refused.
        """
        data = await asyncio.to_thread(pack, state)
        written = checkpoint_key(job_id, state.step)
        await self._store.put(written, data, "application/octet-stream")
        keys = await self._keys(job_id)
        kept = [key for key in keys if key <= written][-KEEP:]
        for key in keys:
            if key not in kept:
                await self._store.delete(key)

    async def _keys(self, job_id: str) -> list[str]:
        return sorted(await self._store.list_keys(checkpoint_prefix(job_id)))
