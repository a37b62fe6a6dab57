"""What has expired is deleted: files first, then the rows in SQL, so that a crash between them loses no track.

Four things go. Work files (embeddings, checkpoints, latents) as soon as their job has ended. Jobs that ended longer
ago than `retention` says, with their videos. The files of videos that their clients deleted, whose tombstones keep
track of them. Orphans: files that no job needs, left by a crash or by a replica that wrote after it had lost its job.
Every part may be killed at any moment, repeated, and run by two registries at once.

Which objects in storage belong to which job, and which of them nobody needs any more.

The keys are those of `deployments.messages`. A key of any other form is not ours, whatever it begins with.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from deployments.errors import RegistryUnavailableError, WorkerError
from deployments.keys import VIDEO_PREFIX, WORK_PREFIX, JobFile, parse_key, video_keys
from deployments.storage.object_store import ListedObject, ObjectInfo
from serve_app.config import DAY_S, RetentionSettings
from serve_app.database import retention as retention_sql
from serve_app.database.connection import Database
from serve_app.database.intake import forget_old_keys
from serve_app.database.meta import installation_id
from serve_app.database.webhooks import forget_old_deliveries
from serve_app.retention.orphans import is_needed

log = logging.getLogger("ray.serve")

BATCH = 100
MAX_BATCHES = 100
KEEP_DELIVERIES_S = 30 * DAY_S
MARKER_PREFIX = "mochi-serve/installations/"
MARKER_TEXT = (
    b"A mochi-serve database whose jobs have their files in this bucket. While more than one is named here, files "
    b"that belong to no job are not swept. Delete this object only if that installation is gone for good.\n"
)


class FileStore(Protocol):
    """What is needed of the object store here; see `deployments.storage.object_store.ObjectStore`."""

    def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]: ...

    async def delete_many(self, keys: Sequence[str]) -> None: ...


class Store(FileStore, Protocol):
    """The object store as the sweeper uses it; see `deployments.storage.object_store.ObjectStore`."""

    async def put(self, key: str, data: bytes, content_type: str) -> None: ...

    async def stat(self, key: str) -> ObjectInfo | None: ...


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did. cleared: jobs whose work files went. expired: jobs that went with all their files.
    keys: idempotency keys that were forgotten."""

    cleared: int
    expired: int
    keys: int


class Sweeper:
    """Deletes what has expired, in the background of a registry.

    Args:
        database: of the jobs.
        store: the bucket their files are in. Only keys that this project writes are ever deleted.
        settings: how long things are kept, and how often to look.
        keep_keys_s: how long an idempotency key is remembered, seconds.
        clock: Unix seconds, by which jobs and idempotency keys expire; the age of orphans goes by the store's.
        on_gone: told of the jobs that are no more.

    Each installation, which is a database with an id of its own, leaves a marker in the bucket. Orphans are swept only
    while there is no marker but its own, and that one is older than `orphan_days`: what looks like an orphan may be
    another installation's video. A database restored from a backup has the same id but does not know the jobs that
    came after the backup: their videos are orphans. `orphan_days` is the grace time; it is to be longer than the time
    since the backup, or what is older goes with the first sweep.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        settings: RetentionSettings,
        keep_keys_s: float,
        clock: Callable[[], float] = time.time,
        on_gone: Callable[[Sequence[str]], None] = lambda job_ids: None,
    ) -> None:
        self._database = database
        self._store = store
        self._settings = settings
        self._keep_keys_s = keep_keys_s
        self._clock = clock
        self._on_gone = on_gone
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """A video was deleted: its files go now rather than with the next sweep. Call it in the loop of `run`."""
        self._woken.set()

    async def run(self) -> None:
        """Sweep for ever; a store or a database that is away is tried again after `sweep_every_s` at the latest."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.sweep_expired, self._settings.sweep_every_s))
            group.create_task(self._repeat(self.sweep_orphans, self._settings.orphans_every_s))
            group.create_task(self._repeat(self.sweep_deliveries, self._settings.orphans_every_s))
            group.create_task(self._repeat_deleted())

    async def _repeat(self, sweep: Callable[[], Awaitable[object]], every_s: float) -> None:
        while True:
            done = await self._try(sweep)
            await asyncio.sleep(every_s if done else min(every_s, self._settings.sweep_every_s))

    async def _repeat_deleted(self) -> None:
        """After a sweep that did not succeed nobody wakes it: each request to delete would try again."""
        while True:
            self._woken.clear()
            if not await self._try(self.sweep_deleted):
                await asyncio.sleep(self._settings.sweep_every_s)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.sweep_every_s):
                    await self._woken.wait()

    async def _try(self, sweep: Callable[[], Awaitable[object]]) -> bool:
        try:
            await sweep()
        except (WorkerError, RegistryUnavailableError) as error:
            log.warning(f"retention: nothing can be swept now, it is tried again: {error}")
            return False
        except Exception:  # the outermost loop: a defect here must not end the registry
            log.exception("retention: a sweep did not succeed; it is tried again")
            return False
        return True

    async def sweep_expired(self) -> Swept:
        """Delete work files of ended jobs, expired jobs with their files, and expired idempotency keys.

        At most 10,000 jobs of each; the next sweep takes the rest.

        Raises:
            WorkerError: the object store is away or refuses.
            RegistryUnavailableError: the database is away.
        """
        cleared = await self._in_batches(self._ended, self._clear)
        expired = await self._in_batches(self._expired, self._delete)
        before = self._clock() - self._keep_keys_s
        keys = await self._database.run(forget_old_keys, before=before)
        swept = Swept(cleared, expired, keys)
        if swept != Swept(0, 0, 0):
            log.info(
                f"retention: cleared the work files of {cleared} ended jobs, deleted {expired} expired jobs with "
                f"their files, forgot {keys} idempotency keys"
            )
        return swept

    async def _in_batches(
        self, find: Callable[[], Awaitable[list[str]]], sweep: Callable[[list[str]], Awaitable[None]]
    ) -> int:
        count = 0
        for _ in range(MAX_BATCHES):
            job_ids = await find()
            if job_ids:
                await sweep(job_ids)
                count += len(job_ids)
            if len(job_ids) < BATCH:
                break
        return count

    async def _ended(self) -> list[str]:
        return await self._database.run(retention_sql.jobs_with_work_files, limit=BATCH)

    async def _clear(self, job_ids: list[str]) -> None:
        await delete_work_files(self._store, job_ids)
        await self._database.run(retention_sql.mark_work_files_deleted, job_ids)

    async def _expired(self) -> list[str]:
        completed = self._before(self._settings.completed_days)
        failed = self._before(self._settings.failed_days)
        return await self._database.run(
            retention_sql.expired_jobs, completed_before=completed, failed_before=failed, limit=BATCH
        )

    def _before(self, days: float | None) -> float | None:
        return None if days is None else self._clock() - days * DAY_S

    async def _delete(self, job_ids: list[str]) -> None:
        await delete_all_files(self._store, job_ids)
        await self._database.run(retention_sql.delete_expired_jobs, job_ids)
        self._on_gone(job_ids)

    async def sweep_deleted(self) -> int:
        """Delete the files of videos that were deleted, and forget those after a day; returns how many had files.

        What a worker wrote after that is deleted some minutes later; see `serve_app.database.retention`.

        Raises:
            WorkerError: the object store is away or refuses.
            RegistryUnavailableError: the database is away.
        """
        count = await self._in_batches(self._deleted, self._delete_files)
        await self._in_batches(self._deleted_with_late_files, self._delete_files)
        await self._database.run(retention_sql.forget_deleted_videos, before=self._clock() - DAY_S)
        if count:
            log.info(f"retention: deleted the files of {count} deleted videos")
        return count

    async def _deleted(self) -> list[str]:
        return await self._database.run(retention_sql.deleted_videos_with_files, limit=BATCH)

    async def _deleted_with_late_files(self) -> list[str]:
        return await self._database.run(retention_sql.deleted_videos_with_late_files, now=self._clock(), limit=BATCH)

    async def _delete_files(self, job_ids: list[str]) -> None:
        begun = self._clock()
        await delete_all_files(self._store, job_ids)
        await self._database.run(retention_sql.mark_video_files_deleted, job_ids, now=begun)

    async def sweep_deliveries(self) -> None:
        """Forget webhooks of jobs that ended a month ago. Raises RegistryUnavailableError: the database is away."""
        before = self._clock() - KEEP_DELIVERIES_S
        while await self._database.run(forget_old_deliveries, before=before, limit=BATCH) == BATCH:
            pass

    async def sweep_orphans(self) -> int:
        """Delete files that no job needs and that are older than `orphan_days`; returns how many.

        Raises:
            WorkerError: the object store is away or refuses.
            RegistryUnavailableError: the database is away.
        """
        written_before = await self._orphans_before()
        if written_before is None:
            return 0
        count = 0
        for prefix in (WORK_PREFIX, VIDEO_PREFIX):
            async for page in self._store.list_pages(prefix):
                # The page first and the states after it: a job is in SQL before any file of it is in storage.
                keys = await self._unneeded(files_before(page, written_before))
                await self._store.delete_many(keys)
                count += len(keys)
        if count:
            log.info(f"retention: deleted {count} files that belonged to no job")
        return count

    async def _orphans_before(self) -> datetime | None:
        """By the store's clock: what was written before that may be an orphan. None: nothing may."""
        installation: str = await self._database.run(installation_id)
        marker = await self._announce(f"{MARKER_PREFIX}{installation}")
        if marker is None or marker.modified is None or await self._shared_with_others(installation):
            return None
        now = marker.answered_at or datetime.fromtimestamp(self._clock(), UTC)
        before = now - timedelta(days=self._settings.orphan_days)
        return before if marker.modified < before else None

    async def _announce(self, key: str) -> ObjectInfo | None:
        """The installation's own marker, written if it is missing."""
        marker = await self._store.stat(key)
        if marker is None:
            await self._store.put(key, MARKER_TEXT, "text/plain")
            marker = await self._store.stat(key)
        return marker

    async def _shared_with_others(self, installation: str) -> bool:
        own = f"{MARKER_PREFIX}{installation}"
        others = [m.key async for page in self._store.list_pages(MARKER_PREFIX) for m in page if m.key != own]
        if others:
            log.error(
                f"retention: the bucket also holds files of other databases ({', '.join(others)}); files that belong "
                f"to no job are not swept. Give each installation a bucket of its own (storage.bucket). If the other "
                f"one is gone for good, save the videos of it that you want and delete its object of that name; this "
                f"installation is {installation}"
            )
        return bool(others)

    async def _unneeded(self, files: Sequence[JobFile]) -> list[str]:
        if not files:
            return []
        job_ids = sorted({file.job_id for file in files})
        states = await self._database.run(retention_sql.job_states, job_ids)
        return [file.key for file in files if not is_needed(file.kind, states.get(file.job_id))]


def files_before(listed: Sequence[ListedObject], moment: datetime) -> list[JobFile]:
    """Those with a key of ours that were last written before `moment`; an object of unknown age is not among them."""
    old = (entry.key for entry in listed if entry.modified is not None and entry.modified < moment)
    return [file for file in map(parse_key, old) if file is not None]


async def delete_work_files(store: FileStore, job_ids: Sequence[str]) -> int:
    """Delete all that lies under the jobs' own prefixes; returns how many objects that were.

    The jobs must have ended: a live one would have to begin again.
    """
    keys = [key for job_id in job_ids for key in await _work_keys(store, job_id)]
    await store.delete_many(keys)
    return len(keys)


async def delete_all_files(store: FileStore, job_ids: Sequence[str]) -> None:
    """Delete videos, their pictures and work files of jobs that have ended."""
    await delete_work_files(store, job_ids)
    await store.delete_many([key for job_id in job_ids for key in video_keys(job_id)])


async def _work_keys(store: FileStore, job_id: str) -> list[str]:
    return [listed.key async for page in store.list_pages(f"{WORK_PREFIX}{job_id}/") for listed in page]
