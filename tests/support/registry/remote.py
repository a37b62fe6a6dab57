"""An actor that stands where the job registry stands. Its process imports this file and nothing that takes seconds."""

import asyncio
import os

from deployments.errors import PermanentError


class RemoteRegistry:
    """Answers, raises, or is slow."""

    async def pid(self) -> int:
        return os.getpid()

    async def add(self, a: int, b: int) -> int:
        return a + b

    async def fail(self) -> None:
        raise PermanentError("bad_prompt", "the prompt is empty")

    async def missing(self) -> None:
        raise KeyError("nothing here")

    async def slow(self) -> None:
        await asyncio.sleep(1000)
