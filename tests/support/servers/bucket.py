"""The bucket of an object store that is starting."""

import asyncio
import time

from deployments.errors import WorkerError
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore

POLL_S = 0.2


async def bucket_ready(settings: StorageSettings, patience_s: float) -> None:
    """Return when the bucket is there and can be written. Raises WorkerError: it is not in time."""
    store = ObjectStore(settings)
    deadline = time.monotonic() + patience_s
    try:
        while True:
            try:
                await store.ensure_bucket()
                await store.put("ready", b"ready", "text/plain")
                return
            except WorkerError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
    finally:
        store.close()
