"""Which samples may be in residence together, by the memory they take."""

import asyncio

from deployments.background import wait_for
from deployments.clip import latent_tokens
from deployments.errors import PermanentError
from deployments.replica.running_task import RunningTask
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint

LOOK_EVERY_S = 0.2


class MemoryGate:
    """Lets a sample in when it fits beside those that are there; one that never fits is refused.

    Args:
        budget: bytes for samples, see `memory_measure.memory_budget`.
    """

    def __init__(self, profile: MemoryProfile, budget: int) -> None:
        self._profile = profile
        self._budget = budget
        self._inside: dict[str, SampleFootprint] = {}
        self._left = asyncio.Event()

    @property
    def max_tokens(self) -> int:
        """The largest guided sample that fits alone."""
        return self._profile.max_tokens(self._budget)

    async def enter(self, running: RunningTask, sample: SampleFootprint) -> bool:
        """Wait until the sample fits; False if the task was asked to yield before.

        Raises:
            PermanentError: `too_large`: it does not fit alone.
            StoppedError: the task was stopped while it waited.
        """
        if not self._profile.fits([], sample, self._budget):
            raise PermanentError(
                "too_large",
                f"the sample has {latent_tokens(sample.shape)} tokens; {self.max_tokens} fit this replica's memory; "
                "ask for fewer frames or a smaller size",
            )
        while not self._profile.fits(list(self._inside.values()), sample, self._budget):
            running.raise_if_stopped()
            if running.park_reason is not None:
                return False
            self._left.clear()
            await wait_for(self._left, LOOK_EVERY_S)
        self._inside[running.task.lease] = sample
        return True

    def leave(self, running: RunningTask) -> None:
        """The sample's memory is free again."""
        self._inside.pop(running.task.lease, None)
        self._left.set()
