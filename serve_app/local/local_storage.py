"""The named actor that runs the local object store. Killed, it starts again and brings the store back."""

from pathlib import Path

from deployments.settings import StorageSettings
from serve_app.local.seaweed import StoreStatus, WeedProcess

ACTOR_NAME = "LocalStorage"


class LocalStorage:
    """An actor around `WeedProcess`: the store lives as long as the actor's process.

    Raises StartupError from `ready` when the store cannot start; it goes on trying, so asking again may succeed.
    """

    def __init__(self, data_dir: Path, settings: StorageSettings) -> None:
        self._weed = WeedProcess(settings, data_dir)
        # Started here and not at the first `ready`: after a restart of the actor nobody asks again.
        self._weed.start()

    async def ready(self) -> StorageSettings:
        """How to reach the store, once it takes objects."""
        return await self._weed.ready()

    async def status(self) -> StoreStatus:
        """How the store fares."""
        return self._weed.status()

    async def stop(self) -> None:
        """End the store in good order; returns when it has ended."""
        await self._weed.stop()
