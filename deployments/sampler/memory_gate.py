"""Which samples may be on the device together, by the memory that they take."""

import asyncio

from deployments.background import wait_for
from deployments.clip import latent_tokens
from deployments.errors import PermanentError
from deployments.replica.running_task import RunningTask
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint


class MemoryGate:
    """Reserves the device's memory for samples: one that does not fit beside the others waits.

    Args:
        profile: what a sample takes.
        budget: bytes for all samples, see `memory_measure.memory_budget`.
        poll_s: seconds between two looks at whether a task that waits was stopped or is to be parked.
    """

    def __init__(self, profile: MemoryProfile, budget: int, poll_s: float = 0.2) -> None:
        self._profile = profile
        self._budget = budget
        self._poll_s = poll_s
        self._reserved: dict[str, SampleFootprint] = {}  # by lease
        self._released = asyncio.Event()

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest guided sample that fits alone."""
        return self._profile.max_tokens(self._budget)

    async def reserve(self, running: RunningTask, footprint: SampleFootprint) -> bool:
        """Wait until the sample fits; False if the task was asked to park before.

        Raises:
            PermanentError: `too_large`: it does not fit alone.
            StoppedError: the task was stopped while it waited.
        """
        if not self._profile.fits([], footprint, self._budget):
            most = self._profile.max_tokens(self._budget, footprint.kept_rows)
            raise PermanentError(
                "too_large",
                f"the sample has {latent_tokens(footprint.shape)} tokens; {most} fit this replica's memory; ask for "
                f"fewer frames or a smaller size{', or for the quality exact' if footprint.kept_rows else ''}",
            )
        while not self._profile.fits(list(self._reserved.values()), footprint, self._budget):
            running.raise_if_stopped()
            if running.park_reason is not None:
                return False
            self._released.clear()
            await wait_for(self._released, self._poll_s)
        self._reserved[running.task.lease] = footprint
        return True

    def release(self, running: RunningTask) -> None:
        """Free the memory of the task's sample, if any was reserved."""
        self._reserved.pop(running.task.lease, None)
        self._released.set()
