"""The sweeper deletes what has expired: files first, then the rows in SQL, so that a crash between them loses no track.

It deletes four kinds of things. Work files (embeddings, checkpoints, latents), as soon as their job
has ended. Jobs that ended longer ago than `retention` says, with their videos. The files of videos
that their clients deleted, which tombstones in SQL keep track of. Orphans, see
`serve_app.retention.orphans`. Every sweep may be killed at any moment, repeated, and run by two
registries at once.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from deployments.background import run_forever, wait_for
from deployments.keys import answers_prefix, is_of_proteins, video_keys, work_prefix
from deployments.storage.object_store import Bucket
from serve_app.config import DAY_S, RetentionSettings
from serve_app.database.connection import Database
from serve_app.database.jobs import deletion as deletion_sql
from serve_app.database.jobs.intake import forget_old_keys
from serve_app.database.jobs.webhooks import forget_old_deliveries
from serve_app.retention.orphans import OrphanSweeper

log = logging.getLogger("ray.serve")

BATCH = 100  # jobs whose files are deleted before their rows are written
MAX_BATCHES = 100  # in one sweep
KEEP_DELIVERIES_S = 30 * DAY_S


@dataclass(frozen=True, slots=True)
class SweepCounts:
    """What one sweep of expired things deleted."""

    cleared: int  # jobs that ended, whose work files were deleted
    expired: int  # jobs that were deleted with all their files
    keys: int  # idempotency keys that were forgotten


class Sweeper:
    """Deletes what has expired, in the background of a registry.

    Args:
        database: of the jobs.
        store: the bucket their files are in.
        settings: how long things are kept, and how often to look.
        keep_keys_s: how long an idempotency key is remembered, seconds.
        clock: Unix seconds.
        on_deleted: called with the ids of expired jobs that were deleted.
    """

    def __init__(
        self,
        database: Database,
        store: Bucket,
        settings: RetentionSettings,
        keep_keys_s: float,
        clock: Callable[[], float] = time.time,
        on_deleted: Callable[[Sequence[str]], None] = lambda job_ids: None,
    ) -> None:
        self._database = database
        self._store = store
        self._settings = settings
        self._keep_keys_s = keep_keys_s
        self._clock = clock
        self._on_deleted = on_deleted
        self._orphan_sweeper = OrphanSweeper(database, store, settings.orphan_days, clock)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Delete the files of deleted videos now rather than with the next sweep. Call it in the loop of `run`."""
        self._woken.set()

    async def run(self) -> None:
        """Sweep for ever; a store or a database that is away is tried again after `sweep_every_s` at the latest."""
        sweep_every_s = self._settings.sweep_every_s
        orphans_every_s = self._settings.orphans_every_s
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.sweep_expired, "expired jobs", sweep_every_s))
            group.create_task(self._repeat(self._orphan_sweeper.sweep, "files of no job", orphans_every_s))
            group.create_task(self._repeat(self.sweep_deliveries, "old webhooks", orphans_every_s))
            group.create_task(
                run_forever(self._sweep_deleted_and_wait, "retention: deleted videos", log, retry_s=sweep_every_s)
            )

    async def sweep_expired(self) -> SweepCounts:
        """Delete work files of ended jobs, expired jobs with their files, and expired idempotency keys.

        At most 10,000 jobs of each; the next sweep takes the rest.

        Raises:
            WorkerError: the object store is away or refuses.
            RegistryUnavailableError: the database is away.
        """
        cleared = await self._in_batches(
            lambda: self._database.run(deletion_sql.jobs_with_work_files, limit=BATCH), self._delete_work_files
        )
        expired = await self._in_batches(self._expired_jobs, self._delete_jobs)
        keys = await self._database.run(forget_old_keys, before=self._clock() - self._keep_keys_s)
        counts = SweepCounts(cleared, expired, keys)
        if counts != SweepCounts(0, 0, 0):
            log.info(
                f"retention: cleared the work files of {cleared} ended jobs, deleted {expired} expired jobs with "
                f"their files, forgot {keys} idempotency keys"
            )
        return counts

    async def sweep_deleted(self) -> int:
        """Delete the files of deleted videos, and forget these videos after a day; returns how many had files.

        What a worker writes after that is deleted some minutes later; see
        `serve_app.database.jobs.deletion`.

        Raises:
            WorkerError: the object store is away or refuses.
            RegistryUnavailableError: the database is away.
        """
        count = await self._in_batches(
            lambda: self._database.run(deletion_sql.deleted_videos_with_files, limit=BATCH), self._delete_video_files
        )
        await self._in_batches(
            lambda: self._database.run(deletion_sql.deleted_videos_with_late_files, now=self._clock(), limit=BATCH),
            self._delete_video_files,
        )
        await self._database.run(deletion_sql.forget_deleted_videos, before=self._clock() - DAY_S)
        if count:
            log.info(f"retention: deleted the files of {count} deleted videos")
        return count

    async def sweep_deliveries(self) -> None:
        """Forget webhooks of jobs that ended a month ago. Raises RegistryUnavailableError: the database is away."""
        before = self._clock() - KEEP_DELIVERIES_S
        while await self._database.run(forget_old_deliveries, before=before, limit=BATCH) == BATCH:
            pass

    async def _repeat(self, sweep: Callable[[], Awaitable[object]], subject: str, every_s: float) -> None:
        async def sweep_once() -> float:
            await sweep()
            return every_s

        retry_s = min(every_s, self._settings.sweep_every_s)
        await run_forever(sweep_once, f"retention: {subject}", log, retry_s)

    async def _sweep_deleted_and_wait(self) -> float:
        """Nobody wakes it after a sweep that failed, or each request to delete a video would try again."""
        self._woken.clear()
        await self.sweep_deleted()
        await wait_for(self._woken, self._settings.sweep_every_s)
        return 0.0

    async def _in_batches(
        self, find: Callable[[], Awaitable[list[str]]], delete: Callable[[list[str]], Awaitable[None]]
    ) -> int:
        count = 0
        for _ in range(MAX_BATCHES):
            job_ids = await find()
            if job_ids:
                await delete(job_ids)
                count += len(job_ids)
            if len(job_ids) < BATCH:
                break
        return count

    async def _delete_work_files(self, job_ids: list[str]) -> None:
        await delete_work_files(self._store, job_ids)
        await self._database.run(deletion_sql.mark_work_files_deleted, job_ids)

    async def _expired_jobs(self) -> list[str]:
        def before(days: float | None) -> float | None:
            return None if days is None else self._clock() - days * DAY_S

        return await self._database.run(
            deletion_sql.expired_jobs,
            completed_before=before(self._settings.completed_days),
            failed_before=before(self._settings.failed_days),
            limit=BATCH,
        )

    async def _delete_jobs(self, job_ids: list[str]) -> None:
        await delete_all_files(self._store, job_ids)
        await self._database.run(deletion_sql.delete_expired_jobs, job_ids)
        self._on_deleted(job_ids)

    async def _delete_video_files(self, job_ids: list[str]) -> None:
        begun_at = self._clock()
        await delete_all_files(self._store, job_ids)
        await self._database.run(deletion_sql.mark_video_files_deleted, job_ids, now=begun_at)


async def delete_work_files(store: Bucket, job_ids: Sequence[str]) -> int:
    """Delete all that lies under the jobs' own prefixes; returns how many objects that were.

    The jobs must have ended: a live one would have to begin again.
    """
    keys = [listed.key for job_id in job_ids async for page in store.list_pages(work_prefix(job_id)) for listed in page]
    await store.delete_many(keys)
    return len(keys)


async def delete_all_files(store: Bucket, job_ids: Sequence[str]) -> None:
    """Delete results and work files of jobs that have ended."""
    await delete_work_files(store, job_ids)
    keys = [key for job_id in job_ids if not is_of_proteins(job_id) for key in video_keys(job_id)]
    for job_id in filter(is_of_proteins, job_ids):
        keys += [listed.key async for page in store.list_pages(answers_prefix(job_id)) for listed in page]
    await store.delete_many(keys)
