"""The job registry as the rest of the control side sees it, and the client of it."""

from typing import Protocol

from deployments.metrics.recorder import Series, Value
from deployments.replica.registry_link import Link, WorkerRegistry, WorkerRegistryClient
from serve_app.access.tenants import AccessTable
from serve_app.feed.publisher import Batch, Cursor
from serve_app.jobs import Acceptance, Health, Job, JobFilter, JobPage, Move, Order, Submission
from serve_app.scheduling.activity import Activity
from serve_app.scheduling.scaling.capacity import StageNeed, StageState


class RegistryApi(WorkerRegistry, Protocol):
    """What the ingress asks for and the workers report; `registry.actor.JobRegistry` does it.

    Each method may be called again when its answer was lost, and may raise
    RegistryUnavailableError.
    """

    async def submit(self, submission: Submission) -> Acceptance:
        """Make the job durable, then answer. The same id or idempotency key gives the same job.

        Raises:
            TooLargeError: none of the samplers has the memory for it.
            QueueFullError: as many jobs wait as may.
            RateLimitError: the tenant asked for too many videos in a minute, or for too many
                GPU-seconds in a day.
            IdempotencyKeyReusedError: the key belongs to another request.
            RegistryUnavailableError: the database is away or full.
            With any of them nothing was written.
        """
        ...

    async def get(self, job_id: str) -> Job | None:
        """The job with its newest progress and its place; None if it is unknown."""
        ...

    async def list_jobs(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage:
        """A page by time of creation. Raises UnknownJobError if there is no job `after`."""
        ...

    async def history(self, job_id: str) -> list[Move] | None:
        """The job's moves, oldest first; None if it is unknown."""
        ...

    async def preview(self, job_id: str) -> bytes | None:
        """The newest picture (WebP) of a video that is being sampled; None if there is none."""
        ...

    async def cancel(self, job_id: str) -> Job | None:
        """End the job; whoever works on it stops at its next step. None if it is unknown."""
        ...

    async def delete(self, job_id: str, tenant: str | None) -> bool:
        """End the job and forget it; its files go soon after.

        Args:
            tenant: the job must be of this tenant; None: of any.

        Returns:
            False if there is no such job.
        """
        ...

    async def park(self, job_id: str) -> bool:
        """Ask the replica that works on the job to park it at the next step; False if none does, or it has no steps."""
        ...

    async def poll_feed(self, follower: str, cursor: Cursor) -> Batch:
        """What has changed since `cursor`; without news the call is held for a moment.

        Args:
            follower: its name, the same in each call.
            cursor: of the last batch.
        """
        ...

    async def refresh_access(self) -> int:
        """Read the tenants and keys again if they have changed, and send them to the followers.

        Returns:
            Their version: this one or a newer one has all that was written before the call.
        """
        ...

    async def poll_access(self, version: int) -> AccessTable | None:
        """The tenants and keys, once they are others than those of this version; None if they are not for a moment."""
        ...

    async def health(self) -> Health:
        """Replicas that are there, live jobs, and whether the database takes a write."""
        ...

    async def activity(self) -> Activity:
        """What waits and what is worked on now; from memory, so also while the database is away."""
        ...

    async def metrics(self) -> dict[Series, Value]:
        """All series of all processes, and those of the jobs by the database."""
        ...

    async def capacity(self, state: StageState) -> StageNeed:
        """How many replicas of a stage are needed, for the autoscaling policy.

        Args:
            state: what Serve keeps now.
        """
        ...


class RegistryClient(WorkerRegistryClient, RegistryApi):
    """The registry over a link."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)

    async def submit(self, submission: Submission) -> Acceptance:
        return await self._link.call(RegistryApi.submit, submission)

    async def get(self, job_id: str) -> Job | None:
        return await self._link.call(RegistryApi.get, job_id)

    async def list_jobs(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage:
        return await self._link.call(RegistryApi.list_jobs, limit, after, order, wanted)

    async def history(self, job_id: str) -> list[Move] | None:
        return await self._link.call(RegistryApi.history, job_id)

    async def preview(self, job_id: str) -> bytes | None:
        return await self._link.call(RegistryApi.preview, job_id)

    async def cancel(self, job_id: str) -> Job | None:
        return await self._link.call(RegistryApi.cancel, job_id)

    async def delete(self, job_id: str, tenant: str | None) -> bool:
        return await self._link.call(RegistryApi.delete, job_id, tenant)

    async def park(self, job_id: str) -> bool:
        return await self._link.call(RegistryApi.park, job_id)

    async def poll_feed(self, follower: str, cursor: Cursor) -> Batch:
        return await self._link.call(RegistryApi.poll_feed, follower, cursor)

    async def refresh_access(self) -> int:
        return await self._link.call(RegistryApi.refresh_access)

    async def poll_access(self, version: int) -> AccessTable | None:
        return await self._link.call(RegistryApi.poll_access, version)

    async def health(self) -> Health:
        return await self._link.call(RegistryApi.health)

    async def activity(self) -> Activity:
        return await self._link.call(RegistryApi.activity)

    async def metrics(self) -> dict[Series, Value]:
        return await self._link.call(RegistryApi.metrics)

    async def capacity(self, state: StageState) -> StageNeed:
        return await self._link.call(RegistryApi.capacity, state)
